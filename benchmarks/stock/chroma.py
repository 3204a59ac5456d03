"""Chroma."""

from __future__ import annotations

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled


def make() -> ChromaPipeline:
    """A Chroma of one double and two single blocks."""
    model = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(ChromaPipeline(scheduler, None, None, None, settled(model)))


def call(pipe: ChromaPipeline, seed: int) -> torch.Tensor:
    """One picture, with guidance; the last token of both prompts is padding."""
    embeds, mask = seeded(seed, 2, 7, 32), torch.tensor([[True] * 6 + [False]])
    return pipe(
        prompt_embeds=embeds[:1],
        prompt_attention_mask=mask,
        negative_prompt_embeds=embeds[1:],
        negative_prompt_attention_mask=mask,
        latents=seeded(seed + 100, 1, 16, 64),
        num_inference_steps=8,
        height=64,
        width=64,
        output_type="latent",
    ).images


STOCK = (Stock("Chroma", make, call),)
