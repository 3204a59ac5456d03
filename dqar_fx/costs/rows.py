"""The streams, rows and tables whose costs are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dqar_fx.errors import ScheduleError
from dqar_fx.guidance.guided import GuidedDenoiser, is_fitted
from dqar_fx.schedule.run import RunShape
from dqar_fx.schedule.schedule import Schedule, as_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.action import Action
    from dqar_fx.schedule.table import BranchTable

    Row = tuple[Action, ...]


@dataclass(frozen=True)
class StreamTable:
    """What one stream does in a trajectory.

    Attributes:
        table: Its branch table.
        called: Per step, whether the denoiser runs at all.
    """

    table: BranchTable
    called: tuple[bool, ...]

    @property
    def num_steps(self) -> int:
        """Steps of the trajectory."""
        return self.table.num_steps

    def rows(self) -> Iterator[tuple[Row, tuple[int, ...]]]:
        """Give the distinct rows of the steps that run, each with its steps."""
        for row in self.table.rows:
            steps = [k for k, is_called in enumerate(self.called) if is_called]
            mine = tuple(step for step in steps if self.table.row(step) == row)
            if mine:
                yield row, mine


def streams_of(denoiser: Denoiser) -> list[StreamTable]:
    """List the streams that a denoiser tells apart: one, or the two of guidance.

    Raises:
        DqarError: Nothing has been captured yet.
    """
    table = denoiser.program.table
    streams = [StreamTable(table, (True,) * table.num_steps)]
    if isinstance(denoiser, GuidedDenoiser):
        other, output = denoiser.unconditional.table, denoiser.guidance_table
        called = (True,) * other.num_steps
        if output is not None:
            called = tuple((~output.is_skipped[:, 0]).tolist())
        streams.append(StreamTable(other, called))
    return streams


def with_schedule(denoiser: Denoiser, schedule: Schedule | str) -> Denoiser:
    """Give a denoiser another schedule, for counting only.

    One that has no number of steps is made for a run as the denoiser's own table is for.

    Raises:
        DqarError: Nothing has been captured yet.
        ScheduleError: The schedule does not fit the sites, or its forecasts read more steps
            than the graphs keep.
    """
    schedule = as_schedule(schedule)
    program = denoiser.program
    own = program.table
    if schedule.waits_for_run and is_fitted(program):
        given = None if program.schedule is None else program.schedule.run
        run = given or RunShape(own.num_steps)
        schedule = schedule.for_run(run.num_rows, calls=run.calls, noise=run.noise or None)
    elif own.calls and schedule.num_steps == own.num_steps:  # taken to be of the same solver
        schedule = schedule.for_run(own.num_steps, calls=own.calls)
    table = schedule.resolve(program.table.sites, around=program.table.around)
    if table.history > program.history:
        raise ScheduleError(
            f"the schedule's forecasts read {table.history} steps of each site, but the "
            f"captured graphs keep {program.history}. Transform with the schedule that reads "
            "most, and compare the others with it"
        )
    return denoiser.with_schedule(schedule)


def all_reused(program: Program) -> Row:
    """Give the row in which each site reads what is kept, or lies inside one that does."""
    return stored_and_reused(program).row(1)


def all_stored(program: Program) -> Row:
    """Give the row in which each site computes for one that reuses everything."""
    return stored_and_reused(program).row(0)


def stored_and_reused(program: Program) -> BranchTable:
    """Make the table of two steps in which each site is stored, then reused."""
    table = program.table
    return Schedule.from_actions("CR").resolve(table.sites, around=table.around)


def all_computed(program: Program) -> Row:
    """Give the row in which each site computes."""
    return all_computed_table(program, 1).row(0)


def all_computed_table(program: Program, num_steps: int) -> BranchTable:
    """Make the table in which each site computes at each step."""
    return Schedule.compute_all(num_steps).resolve(program.table.sites)


def list_rows(denoiser: Denoiser, schedules: Sequence[Schedule] = ()) -> list[Row]:
    """List the distinct rows of a denoiser and of other schedules.

    The rows that compute and that reuse everything come first.

    Raises:
        DqarError: Nothing has been captured yet.
        ScheduleError: A schedule does not fit the sites.
    """
    program = denoiser.program
    others = [with_schedule(denoiser, schedule) for schedule in schedules]
    rows = [all_computed(program), all_reused(program)]
    rows += [
        row
        for each in (denoiser, *others)
        for stream in streams_of(each)
        for row, _ in stream.rows()
    ]
    return list(dict.fromkeys(rows))
