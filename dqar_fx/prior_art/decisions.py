"""What the systems share: a decision for each step, masks of bits, and checks of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.schedule.written_out import WrittenActions

if TYPE_CHECKING:
    from collections.abc import Iterable


class StepDecision(NamedTuple):
    """What all sites do at a step: the letter of an `Action`, why, and a forecast's order."""

    letter: str
    reason: str
    order: int = 0


def write_out(decisions: Iterable[StepDecision], sites: str | tuple[str, ...]) -> Schedule:
    """Return the schedule of one decision per step, for these sites."""
    steps = tuple(decisions)
    rule = WrittenActions(
        letters=tuple((step.letter,) for step in steps),
        strict=False,
        orders=tuple((step.order,) for step in steps),
        reasons=tuple((step.reason,) for step in steps),
    )
    return Schedule(len(steps), rule, sites=sites)


def read_mask(what: str, values: Any) -> tuple[bool, ...]:
    """Read a mask of 1 (compute) and 0 (reuse), one per step.

    Args:
        what: Where the mask comes from, for the error.
        values: A text of ones and zeros, or a sequence of integers or bools.

    Raises:
        ScheduleError: The mask is empty, holds something else, or does not start with 1.
    """
    if isinstance(values, str):
        values = [int(c) if c in "01" else c for c in values]
    array = np.asarray(values, dtype=object)
    if array.ndim != 1 or not len(array):
        raise ScheduleError(f"{what} needs one 1 or 0 per step, found {values!r}")
    for step, value in enumerate(array):
        if not isinstance(value, int | np.integer | np.bool_) or value not in (0, 1):
            raise ScheduleError(
                f"{what} has {value!r} at step {step}; expected 1 (compute) or 0 (reuse)"
            )
    if not array[0]:
        raise ScheduleError(
            f"{what} has 0 (reuse) at step 0, where nothing is kept yet; let it start with 1"
        )
    return tuple(bool(value) for value in array)


def check_number(**values: float) -> None:
    """Check that each named value is a number, and not negative.

    Raises:
        ScheduleError: A value is no number, or less than 0.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ScheduleError(f"{name} must be a number, found {value!r}")
        if not value >= 0:
            raise ScheduleError(f"{name} must be at least 0, found {value}")
