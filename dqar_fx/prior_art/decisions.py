"""What the systems share: a decision for each step, masks of bits, and checks of numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.rules import AnyModelRule
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.schedule.written_out import WrittenActions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dqar_fx.schedule.rules import Mask, Moment
    from dqar_fx.schedule.run import RunShape


class StepDecision(NamedTuple):
    """What all sites do at a step: the letter of an `Action`, why, and a forecast's order."""

    letter: str
    reason: str
    order: int = 0


@dataclass(frozen=True)
class StepRule(AnyModelRule):
    """One decision per step for all sites, written out when the number of steps is known.

    Attributes:
        decide: Gives the decisions, for arguments of which the last is the number of steps.
        arguments: All arguments but that one.
        highest_order: The highest order of a forecast among the decisions; 0 for none.
    """

    decide: Callable[..., Iterable[StepDecision]]
    arguments: tuple[Any, ...]
    highest_order: int = 0

    @property
    def max_order(self) -> int:
        """The highest order of a forecast among the decisions."""
        return self.highest_order

    def for_run(self, run: RunShape) -> WrittenActions:
        """Return the decisions of as many steps as the run has rows."""
        return self.write(run.num_rows)

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow all sites or none, as the decision of the step says."""
        return self.write(moment.num_steps).may_reuse(moment)

    def why(self, moment: Moment, site: int) -> str:
        """Return the reason of the step's decision."""
        return self.write(moment.num_steps).why(moment, site)

    def write(self, num_steps: int) -> WrittenActions:
        """Return the decisions of so many steps."""
        return write_actions(self.decide(*self.arguments, num_steps))


def write_actions(decisions: Iterable[StepDecision]) -> WrittenActions:
    """Return the rule of one decision per step."""
    steps = tuple(decisions)
    return WrittenActions(
        letters=tuple((step.letter,) for step in steps),
        strict=False,
        orders=tuple((step.order,) for step in steps),
        reasons=tuple((step.reason,) for step in steps),
    )


def write_out(decisions: Iterable[StepDecision], sites: str | tuple[str, ...]) -> Schedule:
    """Return the schedule of one decision per step, for these sites."""
    rule = write_actions(decisions)
    return Schedule(len(rule.letters), rule, sites=sites)


def schedule_steps(
    rule: StepRule, num_steps: int | None, sites: str | tuple[str, ...]
) -> Schedule:
    """Return the schedule of a rule for these sites; None is for as many steps as a run has.

    Raises:
        ScheduleError: The number of steps is no integer, or less than 1.
    """
    schedule = Schedule(None, rule, sites=sites)
    return schedule if num_steps is None else schedule.for_run(num_steps)


def read_json(path: Any, what: str, expected: str) -> Any:
    """Return what is in a JSON file.

    Args:
        path: Of the file.
        what: What it should hold, for the error.
        expected: How that looks, for the error.

    Raises:
        ScheduleError: It cannot be read.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise ScheduleError(
            f"no {what} can be read from {path}: {type(error).__name__}: {error}. Expected "
            f"{expected}"
        ) from error


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
