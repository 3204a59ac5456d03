"""AuraFlow."""

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled


def make() -> AuraFlowPipeline:
    """An AuraFlow of one joint and two single blocks."""
    model = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(AuraFlowPipeline(None, None, None, settled(model), scheduler))


def call(pipe: AuraFlowPipeline, seed: int) -> torch.Tensor:
    """One picture, with guidance."""
    embeds, mask = seeded(seed, 2, 7, 32), torch.ones(1, 7, dtype=torch.long)
    return pipe(
        prompt_embeds=embeds[:1],
        prompt_attention_mask=mask,
        negative_prompt_embeds=embeds[1:],
        negative_prompt_attention_mask=mask,
        latents=seeded(seed + 100, 1, 4, 8, 8),
        num_inference_steps=8,
        height=64,
        width=64,
        output_type="latent",
    ).images


STOCK = (Stock("AuraFlow", make, call),)
