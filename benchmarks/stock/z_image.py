"""Z-Image: one picture, two pictures, and guidance that ends before the last step."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled


def make() -> ZImagePipeline:
    """A Z-Image of two blocks, and one refiner each of noise and text."""
    model = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        rope_theta=256.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return quiet(ZImagePipeline(scheduler, None, None, None, settled(model)))


def call(pipe: ZImagePipeline, seed: int, images: int = 1, **more: Any) -> torch.Tensor:
    """Some pictures, of a prompt each."""
    texts = [seeded(seed + i, 7, 16) for i in range(images)]
    given = {"guidance_scale": 0.0, **more}
    return pipe(
        prompt_embeds=texts,
        negative_prompt_embeds=[-text for text in texts],
        latents=seeded(seed + 100, images, 16, 8, 8),
        num_inference_steps=8,
        height=64,
        width=64,
        output_type="latent",
        **given,
    ).images


STOCK = (
    Stock("Z-Image, 1 image", make, call),
    Stock("Z-Image, 2 images", make, partial(call, images=2)),
    Stock(
        "Z-Image, truncated guidance",
        make,
        partial(call, guidance_scale=4.0, cfg_truncation=0.5),
    ),
)
