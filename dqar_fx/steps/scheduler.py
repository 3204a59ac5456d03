"""Where a diffusers scheduler stands in its run.

Its ``set_timesteps`` begins a run, its ``step`` ends a step. A scheduler that is watched tells
both; of another one the tensor of timesteps is looked at, which ``set_timesteps`` makes anew,
and ``step_index``, where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.noise import noise_as_set
from dqar_fx.schedule.run import RunShape, calls_as_set, count_solver_steps

from .timesteps import find_start, find_value

WATCH = "_dqar_fx_watch"
"""Attribute of a scheduler that is watched."""


@dataclass
class SchedulerWatch:
    """What a watched scheduler has told.

    Attributes:
        run: An object of its own for each run; None before ``set_timesteps`` was called.
        steps: How often ``step`` was called in it.
        watchers: How many pipelines watch it.
    """

    run: object = None
    steps: int = 0
    watchers: int = 0

    def begin(self) -> None:
        """Note that ``set_timesteps`` was called."""
        self.run, self.steps = object(), 0

    def end_step(self) -> None:
        """Note that ``step`` was called."""
        self.steps += 1


def is_in_run(scheduler: Any) -> bool:
    """Whether a scheduler is watched and has steps to take."""
    watch: SchedulerWatch | None = getattr(scheduler, WATCH, None)
    if watch is None or watch.run is None:
        return False
    return watch.steps < len(scheduler.timesteps)


@dataclass(eq=False)
class SchedulerRun:
    """One run of a scheduler; the object itself is what tells it from others.

    Attributes:
        scheduler: The scheduler, whose timesteps are set.
        timesteps: They, 1-D.
        start: The index that the run began with, once it is known.
    """

    scheduler: Any = field(repr=False)
    timesteps: torch.Tensor
    start: int | None = None

    @cached_property
    def shape(self) -> RunShape:
        """What a schedule's table is made for."""
        rows = len(self.timesteps)
        try:
            noise = noise_as_set(self.scheduler)
            return RunShape.of(rows, self.calls, noise)
        except (ScheduleError, AttributeError, IndexError, TypeError, ValueError):
            return RunShape.of(rows, self.calls, None)  # its noise levels are not known

    @cached_property
    def calls(self) -> tuple[int, ...]:
        """Which call of its step each timestep is; empty where that is not known."""
        try:
            found = calls_as_set(self.scheduler)
        except (ScheduleError, TypeError, ValueError, ZeroDivisionError):
            return ()
        return found if len(found) == len(self.timesteps) else ()

    @property
    def num_solver_steps(self) -> int:
        """Steps of the solver, each with one call of the denoiser or several."""
        return count_solver_steps(len(self.timesteps), self.calls)


class SchedulerReader:
    """Reads the position of one scheduler, call by call."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._run: SchedulerRun | None = None
        self._token: object = None

    def read(self, timestep: Any) -> tuple[SchedulerRun, int] | None:
        """The run that a call belongs to, and its step; None if no timesteps are set.

        A call that comes right after the last step, as from what is called back at its end,
        is one more of that step.

        Args:
            timestep: The call's, which is looked up where the scheduler does not count.
        """
        scheduler = self.scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        watch: SchedulerWatch | None = scheduler.__dict__.get(WATCH)
        if not isinstance(timesteps, torch.Tensor) or timesteps.dim() != 1:
            return None
        token = timesteps if watch is None or watch.run is None else watch.run
        if self._run is None or token is not self._token:
            self._token, self._run = token, SchedulerRun(scheduler, timesteps)
        run = self._run
        if hasattr(scheduler, "step_index"):
            index = scheduler.step_index
            if index is None:
                index = getattr(scheduler, "begin_index", None)
            found = self._start(run, timestep, 0) if index is None else int(index)
            return run, found - (found == len(timesteps))
        if token is not timesteps and watch is not None:
            found = self._start(run, timestep, watch.steps) + watch.steps
            return run, found - (found == len(timesteps))
        place = find_value(timestep, run.timesteps, scheduler)
        return None if place is None else (run, place)

    def _start(self, run: SchedulerRun, timestep: Any, steps: int) -> int:
        """The index that a run began with, found at its first call, after some steps."""
        if run.start is None:
            found = find_start(timestep, run.timesteps, self.scheduler) or 0
            run.start = max(found - steps, 0)
        return run.start
