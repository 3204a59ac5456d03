"""PixArt alpha and sigma, and sigma with perturbed-attention guidance."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled


def make(kind: type[Any], **more: Any) -> Any:
    """A PixArt of two blocks, each with self-attention and cross-attention."""
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
    )
    scheduler = DPMSolverMultistepScheduler()
    return quiet(kind(None, None, None, settled(model), scheduler, **more))


def call(pipe: Any, seed: int, **more: Any) -> torch.Tensor:
    """One picture, with guidance; the last tokens of both prompts are padding."""
    embeds = seeded(seed, 2, 7, 16)
    masks = torch.tensor([[1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    return pipe(
        prompt_embeds=embeds[:1],
        prompt_attention_mask=masks[:1],
        negative_prompt=None,
        negative_prompt_embeds=embeds[1:],
        negative_prompt_attention_mask=masks[1:],
        latents=seeded(seed + 100, 1, 4, 8, 8),
        num_inference_steps=8,
        use_resolution_binning=False,
        output_type="latent",
        **more,
    ).images


STOCK = (
    Stock("PixArt alpha", partial(make, PixArtAlphaPipeline), call),
    Stock("PixArt sigma", partial(make, PixArtSigmaPipeline), call),
    Stock(
        "PixArt sigma, PAG",
        partial(make, PixArtSigmaPAGPipeline, pag_applied_layers=["blocks.1"]),
        call,
    ),
)
