"""What the schedules of other systems share: cells of one step, and checks of arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule

from .rules_written import Told

if TYPE_CHECKING:
    from collections.abc import Iterable


class Cell(NamedTuple):
    """What all sites do at a step, why, and the order of a forecast."""

    letter: str
    reason: str
    order: int = 0


def written(cells: Iterable[Cell], sites: str | tuple[str, ...]) -> Schedule:
    """The schedule of one cell per step."""
    steps = tuple(cells)
    rule = Told(
        letters=tuple((cell.letter,) for cell in steps),
        strict=False,
        orders=tuple((cell.order,) for cell in steps),
        reasons=tuple(cell.reason for cell in steps),
    )
    return Schedule(len(steps), rule, sites=sites)


def bits_of(what: str, values: Any) -> tuple[bool, ...]:
    """A mask of 1 (compute) and 0 (reuse), as bools per step.

    Args:
        what: Where it comes from, for the error.
        values: A text or a sequence.

    Raises:
        ScheduleError: It is empty, holds something else, or does not start with 1.
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
    """Raise if a named value is no number, or negative."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ScheduleError(f"{name} must be a number, found {value!r}")
        if not value >= 0:
            raise ScheduleError(f"{name} must be at least 0, found {value}")
