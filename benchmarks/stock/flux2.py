"""Flux2 in bf16, where timesteps that follow each other are equal, and Flux2 klein."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled

SHIFT = math.exp(2.02)
"""That of 50 steps for 1024x1024: values of two pairs of neighbours are equal in bf16."""


def make(kind: type[Any], dtype: torch.dtype = torch.float32) -> Any:
    """A Flux2 of one double and two single blocks."""
    model = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=kind is Flux2Pipeline,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=1,
    )
    return quiet(kind(scheduler, vae, None, None, settled(model, dtype=dtype)))


def call(
    pipe: Any, seed: int, dtype: torch.dtype = torch.float32, steps: int = 8, **more: Any
) -> torch.Tensor:
    """One picture."""
    return pipe(
        prompt_embeds=seeded(seed, 1, 7, 16).to(dtype),
        latents=seeded(seed + 100, 1, 4, 4, 4).to(dtype),
        num_inference_steps=steps,
        height=8,
        width=8,
        output_type="latent",
        **more,
    ).images


def guide(pipe: Flux2KleinPipeline, seed: int) -> torch.Tensor:
    """Two calls per step, with names."""
    negative = seeded(seed + 200, 1, 7, 16)
    return call(pipe, seed, negative_prompt_embeds=negative, guidance_scale=4.0)


STOCK = (
    Stock(
        "Flux2, bf16, 50 steps",
        partial(make, Flux2Pipeline, torch.bfloat16),
        partial(call, dtype=torch.bfloat16, steps=50),
    ),
    Stock("Flux2 klein", partial(make, Flux2KleinPipeline), guide),
)
