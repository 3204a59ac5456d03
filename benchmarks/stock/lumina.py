"""Lumina-Next and Lumina 2, whose timesteps rise."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled


def make_next() -> LuminaPipeline:
    """A Lumina-Next of two blocks."""
    model = LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None}
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(LuminaPipeline(settled(model), scheduler, **parts))


def make_2() -> Lumina2Pipeline:
    """A Lumina 2 of two blocks, and one refiner each of noise and text."""
    model = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 64, 64),
        cap_feat_dim=16,
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None}
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(Lumina2Pipeline(settled(model), scheduler, **parts))


def call(pipe: Any, seed: int, **more: Any) -> torch.Tensor:
    """One picture, with guidance; the last tokens of both prompts are padding."""
    embeds = seeded(seed, 2, 7, 16)
    masks = torch.tensor([[1] * 6 + [0], [1] * 4 + [0] * 3])
    return pipe(
        prompt_embeds=embeds[:1],
        prompt_attention_mask=masks[:1],
        negative_prompt_embeds=embeds[1:],
        negative_prompt_attention_mask=masks[1:],
        latents=seeded(seed + 100, 1, 4, 8, 8),
        num_inference_steps=8,
        height=64,
        width=64,
        output_type="latent",
        **more,
    ).images


STOCK = (
    Stock("Lumina-Next", make_next, call),
    Stock("Lumina 2", make_2, call),
)
