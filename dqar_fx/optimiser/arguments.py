"""What a search can be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import DqarError, ScheduleError, check_known
from dqar_fx.guidance.guidance import Guidance
from dqar_fx.schedule.forecast import MAX_ORDER, METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_arguments(
    pipeline: Any,
    inputs: Sequence[Any],
    orders: Sequence[int],
    method: str,
    *,
    ms: float | None,
    quality: float | None,
) -> None:
    """Raise for what cannot be optimised."""
    check_pipeline(pipeline, inputs)
    if not orders or not all(isinstance(o, int) and 0 <= o <= MAX_ORDER for o in orders):
        raise ScheduleError(f"orders must be among 0 to {MAX_ORDER}, found {orders!r}")
    if 0 not in orders:
        raise ScheduleError(
            f"orders={tuple(orders)!r} lacks 0: the step after the first can only be reused"
        )
    check_known("forecast ", method, METHODS, ScheduleError)
    for name, value in (("ms", ms), ("quality", quality)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ScheduleError(f"{name} must be a positive number, found {value!r}")


def check_pipeline(pipeline: Any, inputs: Sequence[Any]) -> None:
    """Raise for what is no pipeline, or nothing to generate."""
    model = getattr(pipeline, "transformer", None)
    if not isinstance(model, torch.nn.Module) or isinstance(model, Denoiser):
        raise DqarError(
            "expected a diffusers pipeline with its own transformer; found "
            f"{type(pipeline).__name__} with a transformer of type {type(model).__name__}"
        )
    if getattr(pipeline, "scheduler", None) is None:
        raise DqarError(f"expected a scheduler, but {type(pipeline).__name__} has none")
    if isinstance(inputs, str) or not len(inputs):
        raise ScheduleError(f"inputs must be several prompts or labels, found {inputs!r}")


def check_guidances(guidances: Sequence[Guidance]) -> None:
    """Raise for guidance that cannot stand side by side in one search."""
    if not all(isinstance(each, Guidance) for each in guidances):
        raise ScheduleError(f"guidances must be dqar_fx.Guidance, found {guidances!r}")
    if len({(each.batched, each.stream) for each in guidances}) > 1:
        raise ScheduleError("guidances must agree in batched and stream")
    if any(each.unconditional is not None for each in guidances):
        raise ScheduleError(
            "guidances must not bring schedules of the unconditional stream's sites: these "
            "are searched"
        )
