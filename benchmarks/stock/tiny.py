"""What the tiny pipelines share: weights that let attention matter, and seeded inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)
Model = TypeVar("Model", bound=torch.nn.Module)


def settled(model: Model, seed: int = 1, dtype: torch.dtype = torch.float32) -> Model:
    """Gives every parameter random values, also those that begin at zero; evaluation mode.

    Values have a standard deviation of 0.8 by the root of how many are summed up, so that
    attention changes the output as much as the rest of a block does; drawn in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[1:] if parameter.ndim > 1 else parameter.shape
            parameter.normal_(std=0.8 / fan_in.numel() ** 0.5, generator=generator)
    # not the model's own `to`, which warns of modules to be kept in float32 if there are none
    return torch.nn.Module.to(model.requires_grad_(False).eval(), dtype)


def seeded(seed: int, *shape: int) -> torch.Tensor:
    """Normally distributed float32 values of that shape, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quiet(pipe: Pipeline) -> Pipeline:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae(channels: int, scale: float = 0.1) -> AutoencoderKL:
    """A VAE whose latent has the picture's height and width, and is scaled for denoising."""
    vae = AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=channels,
        shift_factor=0.1,
        scaling_factor=scale,
    )
    return settled(vae)


@contextmanager
def seeded_draws(seed: int) -> Iterator[None]:
    """Seeds what is drawn from PyTorch's own generator while inside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def unwarned(message: str) -> Iterator[None]:
    """Ignores a library's warnings that begin so, while inside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield
