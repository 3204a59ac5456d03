"""Where a teacher's samples are after each step of another solver, as an aim for that solver.

A teacher of many steps goes through the noise levels of the other solver's steps as well, from
the same noise. What the scheduler makes of a denoiser's output is linear in it:

    next sample = base + slope * output

so that an output is as far from the right one as its next sample is from the teacher's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.errors import ScheduleError
from dqar_fx.solver.multistep_scheduler import MultistepScheduler
from dqar_fx.solver.noise_levels import NoiseLevels

from .teacher import refuse_scaled, run_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dqar_fx.calibration.calibration import Floats

    from .teacher import Teacher
    from .trials import PipelineJob

NEAR = 1e-3
"""Timesteps that are nearer to each other than this are one."""
LEAST_SLOPE = 1e-6
"""What a step makes of a unit of output, at least, for its forecast to matter: float32 has no
more."""


@dataclass
class TeacherStates:
    """The aim of a solver's steps.

    Attributes:
        scheduler: The scheduler of the run that is fitted.
        states: The teacher's sample after each step.
        sample: That of the run before the step that comes.
    """

    scheduler: Any
    states: Sequence[torch.Tensor]
    sample: torch.Tensor | None = None

    @classmethod
    def of(cls, teacher: Teacher, job: PipelineJob, scheduler: Any) -> TeacherStates:
        """Run a teacher from the noise of a job.

        Args:
            teacher: The teacher, of the default solver.
            job: What is generated; its scheduler says what the model was trained for.
            scheduler: The scheduler of the run that is fitted.

        Raises:
            ScheduleError: The teacher's solver is another one, or the scheduler's noise levels
                cannot be told.
            OptionError: The scheduler does not say what the model was trained for.
        """
        if teacher.scheduler is not None:
            raise ScheduleError(
                f"teacher={teacher}: to go through the noise levels of another solver a "
                "teacher has to be of the default one. Give dqar_fx.Teacher(steps)"
            )
        refuse_scaled(scheduler, job.pipeline)
        levels = NoiseLevels.of(job.pipeline.scheduler)
        own = find_timesteps(scheduler, levels, job.num_steps)
        dense = levels.even_ratios(teacher.num_steps)
        added = [t for t in dense if np.abs(own - t).min() > NEAR and t < own[0]]
        grid = np.sort(np.append(own, added))[::-1]
        solver = MultistepScheduler.of(levels, grid)
        after: list[torch.Tensor] = []
        solver.step = recording(solver.step, after.append)
        run_with(job, solver, len(grid))
        ends = [int(np.flatnonzero(grid == t)[0]) - 1 for t in own[1:]]
        return cls(scheduler, [after[end] for end in (*ends, len(grid) - 1)])

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a scheduler's ``step``, so that the sample after it is known."""

        def note(sample: torch.Tensor) -> None:
            self.sample = sample

        return recording(step, note)

    def aim(self, step: int) -> torch.Tensor | None:
        """The output that leads to the teacher's sample: float64, one dimension.

        It is None where the scheduler makes nothing of an output, as in a step between equal
        noise levels: diffusers ends some lists of Karras' noise levels with such a step.

        Raises:
            ScheduleError: The sample after the step is no number.
        """
        zero, one = (self._go(step, value) for value in (0.0, 1.0))
        slope = float((one - zero).mean())
        if not np.isfinite(slope):
            raise ScheduleError(
                f"step {step}: {type(self.scheduler).__name__} gives samples that are not "
                "finite. Expected a solver whose samples follow from the denoiser's output"
            )
        if abs(slope) < LEAST_SLOPE:
            return None
        right = (self.states[step].to(zero) - zero) / slope
        return right.double().flatten()

    def _go(self, step: int, output: float) -> torch.Tensor:
        assert self.sample is not None, "the first step is always computed"
        scheduler = copy.deepcopy(self.scheduler)
        step_of_it = type(scheduler).step  # without those that watch
        timestep = scheduler.timesteps[step]
        given = torch.full_like(self.sample, output)
        found: torch.Tensor = step_of_it(scheduler, given, timestep, self.sample)[0]
        return found


def recording(
    step: Callable[..., Any], note: Callable[[torch.Tensor], None]
) -> Callable[..., Any]:
    """Wrap a scheduler's ``step``, so that each sample after it is noted."""

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        note(result[0])
        return result

    return recorded


def find_timesteps(scheduler: Any, levels: NoiseLevels, num_steps: int) -> Floats:
    """The timesteps of a scheduler's samples, also between whole ones: float64 ``[steps]``.

    Raises:
        ScheduleError: They do not descend, as where steps are made of several evaluations.
    """
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    timesteps = np.asarray(own.timesteps.double().cpu())
    sigmas = getattr(own, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(timesteps) + 1:
        noise = np.asarray(torch.as_tensor(sigmas).double().cpu())[:-1]
        timesteps = noise * levels.last if levels.is_flow else levels.at_ratio(-np.log(noise))
    if (np.diff(timesteps) >= 0).any():
        raise ScheduleError(
            f"{type(scheduler).__name__} does not go from noise level to noise level, "
            f"evaluation by evaluation: {timesteps.round(1).tolist()}. Take a multistep "
            "scheduler or DDIM to fit forecasts towards a teacher"
        )
    return timesteps
