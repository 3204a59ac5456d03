"""The smallest SD3, and a pipeline around it without text encoders."""

from __future__ import annotations

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
