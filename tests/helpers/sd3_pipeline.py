"""The smallest SD3, and a pipeline around it without text encoders."""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.helpers.models import settled


def make_tiny_sd3(sample_size):
    """Two blocks of width 16; patches of one latent."""
    return settled(
        SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=16,
            pooled_projection_dim=24,
        )
    )


def put_in_pipeline(transformer):
    """A pipeline that shows no progress."""
    pipe = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), *[None] * 7
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe):
    """The latents of three steps without guidance."""
    given = {
        "prompt_embeds": torch.ones(1, 4, 16),
        "pooled_prompt_embeds": torch.ones(1, 24),
        "latents": torch.ones(1, 4, 4, 4),
    }
    options = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe(**given, **options, height=32, width=32).images
