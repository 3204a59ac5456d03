"""Tables that wait for a run: what stands for them before, and when one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.errors import StepError
from dqar_fx.schedule.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.passes import CacheFormat
    from dqar_fx.schedule.run import RunShape
    from dqar_fx.schedule.table import Around, BranchTable


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


def table_before_run(
    schedule: Schedule, sites: Sequence[str], around: Around, cache: CacheFormat
) -> BranchTable:
    """The table of a schedule; while that waits for a run, one that computes everything.

    Its forecasts are damped for the rounding of the format.

    Raises:
        ScheduleError: The schedule does not fit the sites.
    """
    known = Schedule.compute_all(1) if schedule.waits_for_run else schedule
    return known.resolve(sites, around, rounding=cache.rounding)


def count_kept(schedule: Schedule, sites: Sequence[str], around: Around) -> int:
    """How many outputs of a site a schedule keeps at a time, whatever the run.

    Raises:
        ScheduleError: The schedule does not fit the sites.
    """
    if schedule.waits_for_run or schedule.resample:
        return schedule.max_history
    return schedule.resolve(sites, around).history
