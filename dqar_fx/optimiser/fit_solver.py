"""Fitting a solver to a model: where it evaluates the denoiser, and how it adds up.

The grid and the weights of a `MultistepScheduler` are numbers, of which the pictures are a
smooth function, and so are the weights of forecasts inside of the denoiser. They are fitted
together, so that the pictures of some seeds come nearest to a teacher's: the solver mends what
reuse leaves out, and the other way round. Nothing but pictures is looked at: what holds for
the denoiser's gradient, for its weights' format or its table does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.calibration.pipeline_run import check_pipeline
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule, as_schedule, check_at_least
from dqar_fx.solver.noise_levels import NoiseLevels
from dqar_fx.transform import transform

from .arguments import check_inputs
from .forecast_space import ForecastSpace
from .levenberg_marquardt import minimise
from .solver_space import SolverSpace
from .teacher import Teacher, run_with
from .trials import PipelineJob, psnr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.solver.multistep_scheduler import MultistepScheduler

ROUNDS = 10
HELD_OUT = 1_000_000
"""Offset of the seeds that a fitted solver is judged on."""


@dataclass(frozen=True)
class FittedSolver:
    """What `fit_solver` found.

    Attributes:
        scheduler: The solver, for ``pipeline.scheduler``.
        schedule: The schedule that it was fitted with, for ``transform``, its forecasts with
            weights that were fitted, too; None where nothing was reused.
        psnr_db: Of the pictures that it was fitted on, against the teacher's, in decibels.
        start_db: Of the same pictures with what the fit began with.
        held_out_db: Of pictures of other seeds.
        held_out_start_db: Of these with what the fit began with.
        rounds: Rounds of the fit that helped.
        teacher: The teacher, as tables name it.
    """

    scheduler: MultistepScheduler
    schedule: Schedule | None
    psnr_db: float
    start_db: float
    held_out_db: float
    held_out_start_db: float
    rounds: int
    teacher: str

    def __str__(self) -> str:
        """In one line."""
        return (
            f"solver of {self.scheduler.num_steps} steps: {self.held_out_db:.1f} dB to "
            f"{self.teacher} on held-out seeds ({self.held_out_start_db:.1f} before the fit; "
            f"{self.psnr_db:.1f} on the seeds it was fitted on)"
        )


def fit_solver(
    pipeline: Any,
    inputs: Sequence[Any],
    num_steps: int,
    *,
    schedule: Schedule | str | None = None,
    sites: str | Sequence[str] | None = None,
    teacher: Teacher | None = None,
    rounds: int = ROUNDS,
    batch_size: int | None = None,
    seed: int = 0,
    compile: str | Mapping[str, Any] | None = None,
    progress: bool = True,
    **call: Any,
) -> FittedSolver:
    """Fit a solver of few steps to a model, so that its pictures come near to converged ones.

    A round runs the pipeline once for each parameter, about five per step.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns. The scheduler says what the model was trained for.
        inputs: Prompts or class labels: the pipeline's first argument. What is fitted
            to a few holds for them alone: two dozen different ones do for a dozen steps.
        num_steps: Evaluations of the denoiser for each stream.
        schedule: What the denoiser reuses and forecasts meanwhile, or the name of a schedule
            tier; None for nothing. The weights of its forecasts are fitted, too: at each step
            the same for all sites.
        sites: As for ``transform``; by default those that the schedule is meant for.
        teacher: Whose pictures are the aim; by default DPM-Solver++ (2M) with 150 steps.
        rounds: Most rounds.
        batch_size: Inputs per run; by default all.
        seed: Seed of the noise.
        compile: As for ``transform``, of a denoiser with a schedule.
        progress: Whether to show a progress bar.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        The solver, and how near its pictures come, judged on other seeds as well.

    Raises:
        ScheduleError: An argument is out of range, or the schedule is of other steps.
        OptionError: The scheduler does not say what the model was trained for.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_pipeline(pipeline)
    check_inputs(inputs)
    check_at_least(2, num_steps=num_steps)
    check_at_least(1, rounds=rounds)
    if batch_size is not None:
        check_at_least(1, batch_size=batch_size)
    teacher = Teacher() if teacher is None else teacher
    schedule = None if schedule is None else as_schedule(schedule)
    check_given(teacher, schedule, call, sites=sites, compile=compile)
    job = PipelineJob(
        pipeline, tuple(inputs), seed, num_steps, batch_size or len(inputs), call
    )
    held_out = replace(job, seed=seed + HELD_OUT)
    student = make_student(job, schedule, sites, compile)

    right = teacher.pictures(job)
    starts = list(student.starts())
    found = [psnr(right, student.pictures(start, job)) for start in starts]
    best_of_them = int(np.argmax(np.nan_to_num(found, nan=-np.inf)))
    start, start_db = starts[best_of_them], found[best_of_them]
    with tqdm(total=rounds, desc="fit_solver", disable=not progress) as bar:
        bar.set_postfix_str(f"{start_db:.1f} dB")

        def report(number: int, mean_square: float) -> None:
            bar.update(number - bar.n)
            bar.set_postfix_str(f"{-10 * np.log10(mean_square):.1f} dB")

        best = minimise(
            lambda parameters: (student.pictures(parameters, job) - right).flatten(),
            start,
            rounds=rounds,
            report=report,
        )
    others = teacher.pictures(held_out)
    return FittedSolver(
        student.scheduler(best.parameters),
        student.schedule(best.parameters),
        psnr(right, student.pictures(best.parameters, job)),
        start_db,
        psnr(others, student.pictures(best.parameters, held_out)),
        psnr(others, student.pictures(start, held_out)),
        best.rounds,
        str(teacher),
    )


def check_given(
    teacher: Any, schedule: Any, call: Mapping[str, Any], **of_schedule: Any
) -> None:
    """Refuse what a fit cannot use; the arguments are those of `fit_solver`.

    Raises:
        ScheduleError: Something has another type, or means nothing.
    """
    if not isinstance(teacher, Teacher):
        raise ScheduleError(f"teacher={teacher!r}: expected a dqar_fx.Teacher, or None")
    for name in ("num_inference_steps", "generator", "output_type"):
        if name in call:
            raise ScheduleError(
                f"{name} is what the fit gives the pipeline itself: num_steps= says how many "
                "steps, seed= which noise. Leave it out"
            )
    unused = [name for name, value in of_schedule.items() if value is not None]
    if schedule is None and unused:
        raise ScheduleError(f"{unused[0]}= is for a denoiser with a schedule: give schedule=")


@dataclass(frozen=True)
class Student:
    """What is fitted: a solver, and the weights of the denoiser's forecasts.

    Attributes:
        space: The solvers, whose numbers come first in a vector.
        model: What is called: the model, or a denoiser of it.
        given: The schedule of that; None without one.
        forecasts: The weights of its forecasts; None where it has none.
    """

    space: SolverSpace
    model: Any
    given: Schedule | None = None
    forecasts: ForecastSpace | None = None

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

    def pictures(self, parameters: Floats, job: PipelineJob) -> torch.Tensor:
        """The pictures of a job with a vector's solver and weights."""
        model, schedule = self.model, self.schedule(parameters)
        if self.forecasts is not None:
            model = model.with_schedule(schedule)
        return run_with(job, self.scheduler(parameters), self.space.num_steps, model)


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
        return Student(space, model)
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
