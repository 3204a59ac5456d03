"""HunyuanDiT and its ControlNet."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPipeline,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, seeded_draws, settled, tiny_vae

SIZE, TOKENS, T5_TOKENS = 16, 7, 5
GEOMETRY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": SIZE,
    "hidden_size": 32,
    "cross_attention_dim": 16,
    "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 16,
    "text_len": TOKENS,
    "text_len_t5": T5_TOKENS,
    "use_style_cond_and_image_meta_size": False,
}
PARTS = (
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "safety_checker",
    "feature_extractor",
)


def make(kind: type[Any], vae: Any = None, **more: Any) -> Any:
    """A HunyuanDiT of four blocks, the last of which takes a skip from the first."""
    parts = {**dict.fromkeys(PARTS), "vae": vae, "scheduler": DDPMScheduler()}
    model = settled(HunyuanDiT2DModel(num_layers=4, **GEOMETRY))
    return quiet(kind(transformer=model, requires_safety_checker=False, **parts, **more))


def make_controlled() -> HunyuanDiTControlNetPipeline:
    """The same with a ControlNet, and a VAE that its picture passes."""
    controlnet = HunyuanDiT2DControlNetModel(transformer_num_layers=4, **GEOMETRY)
    parts = {"controlnet": settled(controlnet, seed=2), "vae": tiny_vae(4)}
    return make(HunyuanDiTControlNetPipeline, **parts)


def call(pipe: Any, seed: int, size: int = 8 * SIZE, **more: Any) -> torch.Tensor:
    """One picture, with guidance."""
    clip, t5 = seeded(seed, 2, TOKENS, 16), seeded(seed + 100, 2, T5_TOKENS, 16)
    clip_mask, t5_mask = (torch.ones(1, n, dtype=torch.long) for n in (TOKENS, T5_TOKENS))
    with seeded_draws(seed):
        return pipe(
            prompt_embeds=clip[:1],
            prompt_attention_mask=clip_mask,
            prompt_embeds_2=t5[:1],
            prompt_attention_mask_2=t5_mask,
            negative_prompt_embeds=clip[1:],
            negative_prompt_attention_mask=clip_mask,
            negative_prompt_embeds_2=t5[1:],
            negative_prompt_attention_mask_2=t5_mask,
            latents=seeded(seed + 200, 1, 4, SIZE, SIZE),
            num_inference_steps=8,
            height=size,
            width=size,
            use_resolution_binning=False,
            output_type="latent",
            **more,
        ).images


def control(pipe: HunyuanDiTControlNetPipeline, seed: int) -> torch.Tensor:
    """One picture, with a control picture."""
    image = seeded(seed + 300, 1, 3, SIZE, SIZE).sigmoid()
    return call(pipe, seed, size=SIZE, control_image=image)


STOCK = (
    Stock("HunyuanDiT", partial(make, HunyuanDiTPipeline), call),
    Stock("HunyuanDiT, ControlNet", make_controlled, control),
)
