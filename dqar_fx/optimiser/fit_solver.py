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

from tqdm.auto import tqdm

from dqar_fx.calibration.pipeline_run import check_pipeline
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule, as_schedule, check_at_least

from .arguments import check_call, check_inputs, check_teacher
from .student import make_student
from .teacher import Teacher
from .trials import PipelineJob, psnr, to_decibels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    start, start_db = student.begin(job, right)
    with tqdm(total=rounds, desc="fit_solver", disable=not progress) as bar:
        bar.set_postfix_str(f"{start_db:.1f} dB")

        def report(number: int, mean_square: float, _: Floats) -> None:
            bar.update(number - bar.n)
            bar.set_postfix_str(f"{to_decibels(mean_square):.1f} dB")

        best = student.fit(job, right, start, rounds=rounds, report=report)
    others = teacher.pictures(held_out)
    return FittedSolver(
        student.scheduler(best.parameters),
        student.schedule(best.parameters),
        to_decibels(best.mean_square),
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
    check_teacher(teacher)
    check_call(call)
    unused = [name for name, value in of_schedule.items() if value is not None]
    if schedule is None and unused:
        raise ScheduleError(f"{unused[0]}= is for a denoiser with a schedule: give schedule=")
