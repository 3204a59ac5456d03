"""From options to a schedule: by name, written out, or a table that was saved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dqar_fx import prior_art
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.action import LETTERS
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.schedule.schedule_tiers import TIERS
from dqar_fx.schedule.table import BranchTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class ScheduleOptions:
    """What the command line says of schedules; None where it says nothing.

    Attributes:
        steps: Steps of the trajectory.
        warmup: First steps, which compute.
        every: Distance of computed steps.
        full_from: The step from which all sites reuse, in the linear schedule.
        max_age: Steps that a kept output may live.
        forecast: Order of the forecasts in the place of reuse.
        method: How to forecast.
    """

    steps: int | None = None
    warmup: int | None = None
    every: int | None = None
    full_from: int | None = None
    max_age: int | None = None
    forecast: int | None = None
    method: str | None = None


DEFAULT_STEPS = 50
NAMED: Mapping[str, tuple[Callable[..., Schedule], Mapping[str, str], Mapping[str, int]]] = {
    "linear": (
        Schedule.linear,
        {"warmup": "warmup", "full_from": "full_from", "max_age": "max_age"},
        {},
    ),
    "interval": (
        Schedule.interval,
        {"every": "every", "warmup": "warmup", "max_age": "max_age"},
        {"every": 2},
    ),
    "compute_all": (Schedule.compute_all, {}, {}),
    "fora": (prior_art.fora, {"every": "every"}, {}),
    "taylorseer": (
        prior_art.taylorseer,
        {"every": "every", "warmup": "first", "forecast": "order"},
        {},
    ),
    **{name: (partial(Schedule.tier, name), {}, {}) for name in TIERS},
}
"""By name: what makes it, the options that it takes with their names there, its defaults."""


def make_schedule(text: str, options: ScheduleOptions) -> Schedule:
    """The schedule that a text means.

    Args:
        text: A name; actions such as ``CCRRCRRC``, or one such text per site with commas
            between; or the file of a saved table.
        options: The other options of schedules.

    Raises:
        ScheduleError: It means none, or an option that it has no use for is given.
    """
    if text in NAMED:
        return named_schedule(text, options)
    if Path(text).is_file():
        return saved_schedule(BranchTable.load(text), text, options)
    parts = text.split(",")
    if text and all(part and set(part) <= set(LETTERS) for part in parts):
        refuse_others(text, options, ("steps", "max_age", "forecast", "method"))
        written = Schedule.from_actions(parts, max_age=options.max_age)
        return finish(check_steps(written, text, options), options)
    raise ScheduleError(
        f"--schedule {text!r} is none: expected one of {', '.join(NAMED)}, actions such as "
        "CCRRCRRC (per site with commas between), or the file of a saved table"
    )


def named_schedule(name: str, options: ScheduleOptions) -> Schedule:
    """Make the schedule that a name of `NAMED` stands for."""
    make, takes, defaults = NAMED[name]
    later = () if "forecast" in takes else ("forecast", "method")
    refuse_others(name, options, ("steps", *takes, *later))
    given = {own: getattr(options, option) for option, own in takes.items()}
    keywords = {own: value for own, value in given.items() if value is not None}
    schedule = make(num_steps=options.steps or DEFAULT_STEPS, **{**defaults, **keywords})
    return finish(schedule, options) if later else schedule


def saved_schedule(table: BranchTable, file: str, options: ScheduleOptions) -> Schedule:
    """The schedule of a table, for the sites that the table has."""
    refuse_others(file, options, ("steps",))
    return check_steps(Schedule.from_table(table), file, options)


def check_steps(schedule: Schedule, text: str, options: ScheduleOptions) -> Schedule:
    """The schedule with as many steps as were asked for, if it has them or is resampled."""
    if options.steps is not None and schedule.resample:
        return schedule.for_run(options.steps)
    if options.steps not in (None, schedule.num_steps):
        raise ScheduleError(
            f"--steps {options.steps}, but {text} is a schedule of {schedule.num_steps} steps"
        )
    return schedule


def finish(schedule: Schedule, options: ScheduleOptions) -> Schedule:
    """The schedule with the forecasts that were asked for."""
    if not options.forecast:
        if options.method is not None:
            raise ScheduleError("--method says how to forecast: give --forecast ORDER, too")
        return schedule
    return schedule.forecast(options.forecast, options.method or "taylor")


def refuse_others(name: str, options: ScheduleOptions, takes: tuple[str, ...]) -> None:
    """Raise for an option that a schedule has no use for."""
    for option, value in vars(options).items():
        if value is not None and option not in takes:
            raise ScheduleError(
                f"--{option.replace('_', '-')} says nothing to the schedule {name}; it takes "
                f"{', '.join('--' + each.replace('_', '-') for each in takes)}"
            )
