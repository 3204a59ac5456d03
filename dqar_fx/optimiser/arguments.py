"""Checks of what a search is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.calibration.pipeline_run import check_pipeline
from dqar_fx.errors import ScheduleError, check_known
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
    """Refuse what cannot be optimised; the arguments are those of `optimise`.

    Raises:
        ScheduleError: An argument is out of range.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_pipeline(pipeline)
    check_inputs(inputs)
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


def check_inputs(inputs: Sequence[Any]) -> None:
    """Refuse a single prompt, and no inputs at all.

    Raises:
        ScheduleError: The inputs are not several prompts or labels.
    """
    if isinstance(inputs, str) or not len(inputs):
        raise ScheduleError(f"inputs must be several prompts or labels, found {inputs!r}")


def check_guidances(guidances: Sequence[Guidance]) -> None:
    """Refuse guidance that cannot be compared in one search.

    Raises:
        ScheduleError: The guidances disagree in how streams are told apart, or bring schedules
            of the unconditional stream's sites.
    """
    if not all(isinstance(each, Guidance) for each in guidances):
        raise ScheduleError(f"guidances must be dqar_fx.Guidance, found {guidances!r}")
    if len({(each.batched, each.stream) for each in guidances}) > 1:
        raise ScheduleError("guidances must agree in batched and stream")
    if any(each.unconditional is not None for each in guidances):
        raise ScheduleError(
            "guidances must not bring schedules of the unconditional stream's sites: these "
            "are searched"
        )
