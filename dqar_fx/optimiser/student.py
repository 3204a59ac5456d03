"""What is fitted to a teacher: a solver, and the weights of a denoiser's forecasts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.action import Action
from dqar_fx.solver.noise_levels import NoiseLevels
from dqar_fx.transform import transform

from .forecast_space import ForecastSpace
from .levenberg_marquardt import minimise
from .replay import Replay
from .solver_space import SolverSpace
from .teacher import run_with
from .trials import psnr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.solver.multistep_scheduler import MultistepScheduler

    from .levenberg_marquardt import Minimum
    from .trials import PipelineJob

PARTS = ("grid", "told times", "solver's weights", "forecasts' weights")
"""What the numbers of a vector are, in this order."""


@dataclass(frozen=True)
class Student:
    """What is fitted: a solver, and the weights of the denoiser's forecasts.

    Attributes:
        space: The solvers, whose numbers come first in a vector.
        model: What is called: the model, or a denoiser of it.
        given: The schedule of that; None without one.
        forecasts: The weights of its forecasts; None where it has none.
        replay: Calls of the latest run, for a model that keeps nothing; None for one that
            reuses.
    """

    space: SolverSpace
    model: Any
    given: Schedule | None = None
    forecasts: ForecastSpace | None = None
    replay: Replay | None = None

    def starts(self) -> Iterator[Floats]:
        """Vectors to begin with."""
        added = 0 if self.forecasts is None else len(self.forecasts.places)
        for start in self.space.starts():
            yield np.append(start, np.zeros(added))

    def scheduler(self, parameters: Floats) -> MultistepScheduler:
        """The solver of a vector."""
        return self.space.scheduler(parameters[: self.space.size])

    def schedule(self, parameters: Floats) -> Schedule | None:
        """The schedule of a vector."""
        if self.forecasts is None:
            return self.given
        return self.forecasts.schedule(parameters[self.space.size :])

    def parts(self, *names: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which numbers of a vector are those of some of `PARTS`, bool ``[numbers]``."""
        steps, weights = self.space.num_steps, self.space.size - 2 * self.space.num_steps
        added = 0 if self.forecasts is None else len(self.forecasts.places)
        lengths = (steps, steps, weights, added)
        return np.repeat([part in names for part in PARTS], lengths)

    def pictures(self, parameters: Floats, job: PipelineJob) -> torch.Tensor:
        """The pictures of a job with a vector's solver and weights."""
        model, scheduler = self.model, self.scheduler(parameters)
        if self.forecasts is not None:
            model = model.with_schedule(self.schedule(parameters))
        if self.replay is not None:
            model = self.replay.of(model, scheduler, job)
        pictures = run_with(job, scheduler, self.space.num_steps, model)
        if scheduler.step_index != self.space.num_steps:
            raise ScheduleError(
                f"{type(job.pipeline).__name__} did not step by the scheduler it was given, "
                f"which is at step {scheduler.step_index} of {self.space.num_steps}. Expected "
                "a pipeline that calls pipeline.scheduler.step()"
            )
        return pictures

    def begin(self, job: PipelineJob, right: torch.Tensor) -> tuple[Floats, float]:
        """The best of the vectors to begin with, and its PSNR to the right pictures."""
        starts = list(self.starts())
        found = [psnr(right, self.pictures(start, job)) for start in starts]
        best = int(np.argmax(np.nan_to_num(found, nan=-np.inf)))
        return starts[best], found[best]

    def fit(
        self,
        job: PipelineJob,
        right: torch.Tensor,
        start: Floats,
        *,
        rounds: int,
        parts: Sequence[str] = PARTS,
        report: Callable[[int, float, Floats], None] = lambda *_: None,
    ) -> Minimum:
        """Fit some parts of a vector, so that a job's pictures come near to the right ones.

        Args:
            job: The pictures.
            right: The teacher's.
            start: What to begin with.
            rounds: Most rounds, see `minimise`.
            parts: Which numbers are fitted, of `PARTS`; the others stand.
            report: Is called with the number of each round, the mean square and the vector.
        """
        free = np.flatnonzero(self.parts(*parts))

        def whole(changed: Floats) -> Floats:
            vector = start.copy()
            vector[free] = changed
            return vector

        found = minimise(
            lambda changed: (self.pictures(whole(changed), job) - right).flatten(),
            start[free],
            rounds=rounds,
            report=lambda number, square, changed: report(number, square, whole(changed)),
        )
        return replace(found, parameters=whole(found.parameters))


def make_student(
    job: PipelineJob,
    schedule: Schedule | None,
    sites: str | Sequence[str] | None,
    compile: str | Mapping[str, Any] | None,
) -> Student:
    """What a job's model is fitted with.

    Raises:
        ScheduleError: The schedule is of another number of steps.
        OptionError: The scheduler does not say what the model was trained for.
    """
    model = job.pipeline.transformer
    space = SolverSpace(NoiseLevels.of(job.pipeline.scheduler), job.num_steps)
    if schedule is None:
        return Student(space, model, replay=Replay())
    if schedule.num_steps not in (None, job.num_steps):
        raise ScheduleError(
            f"a schedule of {schedule.num_steps} steps for a solver of {job.num_steps}: give "
            "one of as many steps, or without a number"
        )
    wanted = sites or schedule.sites or "attention"
    wanted = wanted if isinstance(wanted, str) else tuple(wanted)
    denoiser = transform(model, schedule, sites=wanted, compile=compile)
    run_with(job, space.scheduler(next(space.starts())), job.num_steps, denoiser)
    table = denoiser.table
    if not (table.actions == Action.FORECAST).any():
        return Student(space, denoiser, schedule)
    forecasts = ForecastSpace(table, wanted, Fingerprint.of(model))
    return Student(space, denoiser, schedule, forecasts)
