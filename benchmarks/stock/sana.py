"""Sana, which has linear attention beside cross-attention, and its ControlNet."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, seeded_draws, settled

SIZE = 8
GEOMETRY: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 16,
    "sample_size": SIZE,
}


def make(kind: type[Any], vae: Any = None, **more: Any) -> Any:
    """A Sana of two blocks."""
    model = settled(SanaTransformer2DModel(num_layers=2, **GEOMETRY))
    scheduler = FlowMatchEulerDiscreteScheduler()
    parts = {"tokenizer": None, "text_encoder": None, "vae": vae}
    return quiet(kind(transformer=model, scheduler=scheduler, **parts, **more))


def make_controlled() -> SanaControlNetPipeline:
    """The same with a ControlNet of two blocks, and a VAE that its picture passes."""
    vae = AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.1,
    )
    controlnet = settled(SanaControlNetModel(num_layers=2, **GEOMETRY), seed=2)
    return make(SanaControlNetPipeline, settled(vae), controlnet=controlnet)


def call(pipe: Any, seed: int, size: int = 32 * SIZE, **more: Any) -> torch.Tensor:
    """One picture, with guidance; the last tokens of both prompts are padding."""
    embeds = seeded(seed, 2, 7, 16)
    masks = torch.tensor([[1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    with seeded_draws(seed):
        return pipe(
            prompt_embeds=embeds[:1],
            prompt_attention_mask=masks[:1],
            negative_prompt=None,
            negative_prompt_embeds=embeds[1:],
            negative_prompt_attention_mask=masks[1:],
            latents=seeded(seed + 100, 1, 4, SIZE, SIZE),
            num_inference_steps=8,
            height=size,
            width=size,
            use_resolution_binning=False,
            output_type="latent",
            **more,
        ).images


def control(pipe: SanaControlNetPipeline, seed: int) -> torch.Tensor:
    """One picture, with a control picture."""
    image = seeded(seed + 200, 1, 3, 4 * SIZE, 4 * SIZE).sigmoid()
    return call(pipe, seed, size=4 * SIZE, control_image=image)


STOCK = (
    Stock("Sana", partial(make, SanaPipeline), call),
    Stock("Sana, ControlNet", make_controlled, control),
)
