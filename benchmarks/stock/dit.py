"""DiT with first-order and second-order schedulers; the VAE decodes, since it must."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded_draws, settled, tiny_vae

STEPS = 10


def make(scheduler: type[Any]) -> DiTPipeline:
    """A DiT of three blocks."""
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
    )
    return quiet(DiTPipeline(settled(model), tiny_vae(4, scale=1.0), scheduler()))


def call(pipe: DiTPipeline, seed: int) -> torch.Tensor:
    """Two pictures, with guidance."""
    with seeded_draws(seed):
        return pipe([seed + 3, 7], num_inference_steps=STEPS, output_type="pt").images


STOCK = (
    Stock("DiT, DDIM", partial(make, DDIMScheduler), call),
    Stock("DiT, DDPM", partial(make, DDPMScheduler), call),
    Stock("DiT, DPM-Solver++", partial(make, DPMSolverMultistepScheduler), call),
    Stock("DiT, Heun", partial(make, HeunDiscreteScheduler), call),
)
