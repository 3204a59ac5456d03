"""Tables that wait for a run: what stands for them before, and what is made for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from dqar_fx.errors import StepError
from dqar_fx.schedule.schedule import Schedule

from .recently_used import RecentlyUsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dqar_fx.schedule.run import Run as RunShape
    from dqar_fx.schedule.table import Around, BranchTable

Made = TypeVar("Made")
MAX_LENGTHS = 4
"""Lengths of runs, or kinds of them, whose tables are kept for one input signature."""


class Fitted(Generic[Made]):
    """What was made for runs, by their shape; the least recently used one goes first.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[RunShape], Made]) -> None:
        self._make = make
        self._known: RecentlyUsed[RunShape, Made] = RecentlyUsed()

    def __iter__(self) -> Iterator[Made]:
        return iter(self._known)

    def find(self, shape: RunShape) -> Made:
        """What was made for a run, or is made now."""
        return self._known.find_or_make(shape, lambda: self._make(shape), MAX_LENGTHS)


def shape_of_table(schedule: Schedule, shape: RunShape | None) -> RunShape | None:
    """The run that a schedule needs a table of its own for; None if it has the right one.

    Raises:
        StepError: The schedule waits for a run that does not say how long it is.
    """
    if shape is None and schedule.waits_for_run:
        raise StepError(
            "the schedule has no number of steps, and this run does not say how many it "
            "has. Expected a diffusers pipeline, or attach_scheduler(scheduler), or "
            "timesteps that are elements of one tensor, or "
            "cache_context(name, num_inference_steps=...); or a schedule that has its "
            "number, such as Schedule.interval(50, every=2)"
        )
    if shape is None or shape.num_rows == schedule.num_steps:
        return None
    return shape


def table_before_run(schedule: Schedule, sites: Sequence[str], around: Around) -> BranchTable:
    """The table of a schedule; while that waits for a run, one that computes everything.

    Raises:
        ScheduleError: The schedule does not fit the sites.
    """
    known = Schedule.compute_all(1) if schedule.waits_for_run else schedule
    return known.resolve(sites, around)


def count_kept(schedule: Schedule, sites: Sequence[str], around: Around) -> int:
    """How many outputs of a site a schedule keeps at a time, whatever the run.

    Raises:
        ScheduleError: The schedule does not fit the sites.
    """
    if schedule.waits_for_run or schedule.resample:
        return schedule.max_history
    return schedule.resolve(sites, around).history
