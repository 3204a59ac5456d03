"""The guarded node of a site: evaluate it, or read what it gave at an earlier step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from dqar_fx.schedule.action import Action

from .formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def compute_or_reuse(
    action: int,
    weights: torch.Tensor | None,
    slots: Sequence[Sequence[Sequence[torch.Tensor]]],
    body: Callable[..., tuple[torch.Tensor, ...]],
    resume: Callable[..., tuple[torch.Tensor, ...]] | None,
    cache_format: str,
    dtypes: Sequence[torch.dtype],
    inputs: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """The guard: evaluate ``body``, or read what it gave at an earlier step.

    Args:
        action: An `Action`.
        weights: float32 ``[history]``: of a forecast, newest first; None if one step is kept.
        slots: Per kept value and step that is kept, newest first, the buffers of the format.
        body: The site: maps ``inputs`` to the outputs, and the kept values if they are others.
        resume: Maps the kept values and ``others`` to the outputs; None where they are these.
        cache_format: Name of the format.
        dtypes: Per kept value, the dtype to read it in.
        inputs: What the site reads, parameters included.
        others: What ``resume`` reads beside the kept values.
    """
    kept_as = FORMATS[cache_format]
    if action in (Action.REUSE, Action.FORECAST):
        pairs = zip(slots, dtypes, strict=True)
        if action == Action.REUSE or weights is None:
            kept = tuple(kept_as.read(history[0], dtype) for history, dtype in pairs)
        else:
            kept = tuple(
                forecast(weights, [kept_as.read(each, dtype) for each in history])
                for history, dtype in pairs
            )
        return kept if resume is None else resume(*kept, *others)
    results = body(*inputs)
    if action == Action.STORE:
        for history, value in zip(slots, results[-len(slots) :], strict=True):
            kept_as.write(value, history[0])
    return results


def forecast(weights: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weighted sum of kept values, newest first, in float32; then in their own dtype."""
    total = weights[0] * values[0].float()
    for place, value in enumerate(values[1:], start=1):
        total = total + weights[place] * value.float()
    return total.to(values[0].dtype)


fx.wrap("compute_or_reuse")
