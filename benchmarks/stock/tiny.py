"""What the tiny pipelines share: weights that let attention matter, and seeded inputs."""

from __future__ import annotations

from typing import TypeVar

import torch
from diffusers import DiffusionPipeline

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)
Model = TypeVar("Model", bound=torch.nn.Module)


def settled(model: Model, seed: int = 1) -> Model:
    """Gives every parameter random values, also those that begin at zero; evaluation mode.

    Values have a standard deviation of ``0.8 / sqrt(columns)``, so that attention changes the
    model's output as much as the rest of a block does.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = 0.8 / max(parameter.shape[-1:].numel(), 1) ** 0.5
            parameter.normal_(std=deviation, generator=generator)
    return model.requires_grad_(False).eval()


def seeded(seed: int, *shape: int) -> torch.Tensor:
    """Normally distributed float32 values of that shape, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quiet(pipe: Pipeline) -> Pipeline:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
