"""Running a diffusers pipeline with another transformer, and leaving it as it was."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.denoiser.step_denoiser import StepDenoiser
from dqar_fx.errors import DqarError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def check_pipeline(pipeline: Any, demand: str = "expected") -> None:
    """Refuse what is not a pipeline with an untransformed model and a scheduler.

    Raises:
        DqarError: The pipeline has no transformer of its own or no scheduler.
    """
    model = getattr(pipeline, "transformer", None)
    transformed = isinstance(model, StepDenoiser)
    if transformed or not isinstance(model, torch.nn.Module):
        found = "that is transformed" if transformed else f"of type {type(model).__name__}"
        raise DqarError(
            f"{demand} a diffusers pipeline with its own transformer; found "
            f"{type(pipeline).__name__} with a transformer {found}"
        )
    if getattr(pipeline, "scheduler", None) is None:
        raise DqarError(f"{demand} a scheduler, but {type(pipeline).__name__} has none")


def count_timesteps(scheduler: Any, num_steps: int) -> int:
    """Count the timesteps of so many steps; some schedulers have several of them per step."""
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(num_steps)
    except (AttributeError, TypeError, ValueError):
        return num_steps  # it needs more than a number, which the pipeline knows
    return len(own.timesteps)


@contextmanager
def substitute(pipeline: Any, transformer: nn.Module, scheduler: Any = None) -> Iterator[Any]:
    """Give a pipeline another transformer and scheduler for a while, without progress bars.

    A denoiser is attached to the scheduler where that counts its steps. Afterwards the
    pipeline's parts and the random number generators of all devices are as they were, whatever
    happened.

    Args:
        pipeline: A diffusers pipeline.
        transformer: What takes the place of the pipeline's transformer.
        scheduler: What takes the place of its scheduler; a copy of it by default.

    Yields:
        The scheduler in use.
    """
    own = copy.deepcopy(pipeline.scheduler) if scheduler is None else scheduler
    if isinstance(transformer, StepDenoiser) and hasattr(own, "step_index"):
        transformer.attach_scheduler(own)
    before = pipeline.transformer, pipeline.scheduler
    devices = list(range(torch.cuda.device_count()))
    with silence(pipeline), torch.random.fork_rng(devices=devices):
        pipeline.transformer, pipeline.scheduler = transformer, own
        try:
            yield own
        finally:
            pipeline.transformer, pipeline.scheduler = before


@contextmanager
def silence(pipeline: Any) -> Iterator[None]:
    """Turn a pipeline's own progress bars off for a while."""
    if not hasattr(pipeline, "set_progress_bar_config"):
        yield
        return
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)
