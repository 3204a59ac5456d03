"""Fitting a solver to a model: where it evaluates the denoiser, and how it adds up.

The grid and the weights of a `MultistepScheduler` are numbers, of which the pictures are a
smooth function. They are fitted together, so that the pictures of some seeds come nearest to
a teacher's; the denoiser may reuse and forecast inside of itself meanwhile, so that the solver
mends that, too. Nothing but pictures is looked at: what holds for the denoiser's gradient, for
its weights' format or its table does not matter.

Parameters are the logarithms of the grid's gaps, whose sum stands; by how much the timestep
that the denoiser is told differs from that of its sample; and what is added to the weights of
DPM-Solver++ (2M) on that grid. Source: S4S (Frankel et al., 2502.17423) fits grids, told times
and weights to a teacher by gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dqar_fx.calibration.pipeline_run import check_pipeline
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule, check_at_least
from dqar_fx.solver.multistep_scheduler import MultistepScheduler, dpm_solver_weights
from dqar_fx.solver.noise_levels import NoiseLevels
from dqar_fx.transform import transform

from .arguments import check_inputs
from .levenberg_marquardt import minimise
from .teacher import Teacher, run_with
from .trials import PipelineJob, psnr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from dqar_fx.calibration.calibration import Floats

DIFFERENCES = 3
"""Differences of earlier predictions that each step adds up."""
SHIFT = 0.1
"""Share of a gap by which a parameter of 1 shifts the timestep that the denoiser is told."""
MOST_SHIFTED = 0.45
"""Share of a gap by which it is shifted at most."""
ROUNDS = 10
HELD_OUT = 1_000_000
"""Offset of the seeds that a fitted solver is judged on."""


@dataclass(frozen=True)
class FittedSolver:
    """What `fit_solver` found.

    Attributes:
        scheduler: The solver, for ``pipeline.scheduler``.
        psnr_db: Of the pictures that it was fitted on, against the teacher's, in decibels.
        start_db: Of the same pictures with what the fit began with.
        held_out_db: Of pictures of other seeds.
        held_out_start_db: Of these with what the fit began with.
        rounds: Rounds of the fit that helped.
        teacher: The teacher, as tables name it.
    """

    scheduler: MultistepScheduler
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
    schedule: Schedule | None = None,
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
        inputs: Prompts or class labels: the pipeline's first argument. The fit needs several
            different ones; two dozen are enough for a dozen steps.
        num_steps: Evaluations of the denoiser for each stream.
        schedule: What the denoiser reuses and forecasts meanwhile; None for nothing.
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
    teacher = teacher or Teacher()
    levels = NoiseLevels.of(pipeline.scheduler)
    job = PipelineJob(
        pipeline, tuple(inputs), seed, num_steps, batch_size or len(inputs), call
    )
    held_out = replace(job, seed=seed + HELD_OUT)
    denoiser = pipeline.transformer
    if schedule is not None:
        if schedule.num_steps not in (None, num_steps):
            raise ScheduleError(
                f"a schedule of {schedule.num_steps} steps for a solver of {num_steps}: give "
                "one of as many steps, or without a number"
            )
        wanted = sites or schedule.sites or "attention"
        denoiser = transform(denoiser, schedule, sites=wanted, compile=compile)
    space = SolverSpace(levels, num_steps)

    def pictures(parameters: Floats, of: PipelineJob = job) -> torch.Tensor:
        return run_with(of, space.scheduler(parameters), num_steps, denoiser)

    right = teacher.pictures(job)
    starts = list(space.starts())
    found = [psnr(right, pictures(start)) for start in starts]
    start, start_db = starts[int(np.argmax(found))], max(found)
    with tqdm(total=rounds, desc="fit_solver", disable=not progress) as bar:
        bar.set_postfix_str(f"{start_db:.1f} dB")

        def report(number: int, mean_square: float) -> None:
            bar.update(number - bar.n)
            bar.set_postfix_str(f"{-10 * np.log10(mean_square):.1f} dB")

        best = minimise(
            lambda parameters: (pictures(parameters) - right).flatten(),
            start,
            rounds=rounds,
            report=report,
        )
    others = teacher.pictures(held_out)
    return FittedSolver(
        space.scheduler(best.parameters),
        psnr(right, pictures(best.parameters)),
        start_db,
        psnr(others, pictures(best.parameters, held_out)),
        psnr(others, pictures(start, held_out)),
        best.rounds,
        str(teacher),
    )


@dataclass(frozen=True)
class SolverSpace:
    """Solvers of so many steps as vectors of numbers.

    Attributes:
        levels: The levels that the model was trained for.
        num_steps: Steps.
    """

    levels: NoiseLevels
    num_steps: int

    @property
    def known(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of which differences a step has both predictions, ``[steps, differences]``."""
        return np.arange(self.num_steps)[:, None] > np.arange(DIFFERENCES)[None]

    def scheduler(self, parameters: Floats) -> MultistepScheduler:
        """The solver of a vector."""
        logarithms, shifts, added = np.split(parameters, [self.num_steps, 2 * self.num_steps])
        gaps = np.exp(logarithms - logarithms.max())
        gaps *= self.levels.last / gaps.sum()
        grid = self.levels.last - np.append(0, gaps.cumsum()[:-1])
        around = np.minimum(gaps, np.append(gaps[0], gaps[:-1]))  # so that timesteps descend
        told = grid + around * MOST_SHIFTED * np.tanh(SHIFT / MOST_SHIFTED * shifts)
        weights = np.zeros((self.num_steps, DIFFERENCES))
        weights[:, :1] = dpm_solver_weights(self.levels, grid)
        weights[self.known] += added
        told = told.clip(max=self.levels.last)
        made: MultistepScheduler = MultistepScheduler.of(self.levels, grid, weights, told)
        return made

    def starts(self) -> Iterator[Floats]:
        """DPM-Solver++ on grids even in the timestep, in the log ratio, and between."""
        even = self.levels.even_timesteps(self.num_steps)
        ratios = self.levels.even_ratios(self.num_steps)
        for share in (0.0, 0.25, 0.5, 1.0):
            grid = (1 - share) * even + share * ratios
            gaps = np.log(-np.diff(np.append(grid, 0.0)))
            yield np.append(gaps, np.zeros(self.num_steps + int(self.known.sum())))
