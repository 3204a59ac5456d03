"""Qwen-Image: from text with true guidance, and the editing of a picture."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from torch.nn import functional as F

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled

CHANNELS, SIZE = 64, 64


class PoolingVAE:
    """Takes means of 64x64 pixels for a latent: the editor scales pictures to a megapixel."""

    temperal_downsample = (True,) * 6
    config = SimpleNamespace(z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16)

    def encode(self, pictures: torch.Tensor) -> SimpleNamespace:
        """The latents ``[B, 16, 1, H / 64, W / 64]`` of pictures ``[B, 3, 1, H, W]``."""
        means = F.avg_pool3d(pictures, (1, 64, 64))
        return SimpleNamespace(latents=means.repeat(1, 6, 1, 1, 1)[:, : self.config.z_dim])


def make(kind: type[Any], vae: Any = None, **more: Any) -> Any:
    """A Qwen-Image of two blocks."""
    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS // 4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return quiet(kind(scheduler, vae, None, None, transformer=settled(model), **more))


def make_editor() -> QwenImageEditPipeline:
    """The same for the editing of pictures."""
    return make(QwenImageEditPipeline, PoolingVAE(), processor=None)


def call(pipe: Any, seed: int, size: int = SIZE, **more: Any) -> torch.Tensor:
    """One picture, with guidance; the prompts differ in length."""
    return pipe(
        prompt_embeds=seeded(seed, 1, 7, 16),
        prompt_embeds_mask=torch.ones(1, 7, dtype=torch.long),
        negative_prompt_embeds=seeded(seed + 100, 1, 5, 16),
        negative_prompt_embeds_mask=torch.ones(1, 5, dtype=torch.long),
        true_cfg_scale=4.0,
        latents=seeded(seed + 200, 1, 16, CHANNELS),
        num_inference_steps=8,
        height=size,
        width=size,
        output_type="latent",
        **more,
    ).images


def edit(pipe: QwenImageEditPipeline, seed: int) -> torch.Tensor:
    """The latent of a picture stands behind that of the result."""
    pixels = seeded(seed + 300, 8, 8, 3).sigmoid().mul(255).byte().numpy()
    return call(pipe, seed, size=512, image=Image.fromarray(pixels))


STOCK = (
    Stock("Qwen-Image", partial(make, QwenImagePipeline), call),
    Stock("Qwen-Image, edit", make_editor, edit),
)
