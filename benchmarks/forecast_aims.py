"""What the weights of forecasts are fitted to: the model's outputs, or a teacher's samples.

A table of every so many steps runs on several solvers of diffusers, with the weights of a
polynomial, with those that are fitted to what the untransformed model gives, and with those
that are fitted to where a teacher is at the next noise level. Pictures are those of held-out
seeds, compared with the teacher's.

Examples::

    python -m benchmarks.forecast_aims
    python -m benchmarks.forecast_aims --steps 12 --every 2 3
    python -m benchmarks.forecast_aims --quick --out results/quick   # does it run at all?
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

import dqar_fx
from benchmarks.ablation.protocol import SEED
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import at_least, quick_flag, run_command, several
from benchmarks.harness.pipelines import load_pipeline
from benchmarks.harness.rows import SHARED, write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.solvers import (
    FIT_SEED,
    FitOptions,
    Setting,
    count_work,
    make_job,
    make_solver,
)
from dqar_fx import Schedule, Teacher
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr

QUICK = {"steps": (6,), "every": (2,), "pictures": 2, "fitted_on": 2, "teacher": 12}
SOLVERS = {"DDIM": "leading", "DPM-Solver++ 2M": "leading", "DEIS 3": "Karras"}
"""Solvers, each with the spacing of its timesteps."""
WARMUP = 3


@dataclass(frozen=True)
class Row:
    """One table on one solver.

    Attributes:
        solver: Its name and spacing.
        steps: Its steps, each of which evaluates once where nothing is reused.
        every: Steps from one that computes to the next.
        order: Of forecasts.
        evaluations: Its multiply-accumulates by those of one step that computes all.
        without_db: Decibels to the teacher's pictures where every step computes.
        polynomial_db: With a polynomial's weights.
        to_model_db: With weights fitted to the model.
        to_teacher_db: With weights fitted to the teacher.
        run: What all rows share.
    """

    solver: str
    steps: int
    every: int
    order: int
    evaluations: float
    without_db: float
    polynomial_db: float
    to_model_db: float
    to_teacher_db: float
    run: Setting | None = field(default=None, metadata=SHARED)


@dataclass(frozen=True)
class Options(FitOptions):
    """Options of this command."""

    COMMAND = "benchmarks.forecast_aims"
    QUICK = QUICK

    steps: Annotated[tuple[int, ...], several(at_least(4))] = (12, 20, 50)
    """Steps of the solvers."""
    every: Annotated[tuple[int, ...], several(at_least(2))] = (2, 3)
    """Steps from one that computes to the next."""
    order: Annotated[int, at_least(1)] = 2
    """Of forecasts."""
    sites: str = "all"
    """What forecasts."""
    out: Path = Path("results/forecast_aims")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def compare(pipe: Any, options: Options) -> Iterator[Row]:
    """All tables on all solvers."""
    job = make_job(pipe, options, SEED, options.pictures)
    right = Teacher(options.teacher).pictures(job)
    for steps in options.steps:
        for name, spacing in SOLVERS.items():
            pipe.scheduler = make_solver(pipe, name, spacing)
            without = psnr(right, run_with(job, pipe.scheduler, steps))
            for every in options.every:
                found = fit_both(job, options, steps, every, right)
                text = f"{name}, {spacing}"
                yield Row(text, steps, every, options.order, *found[:1], without, *found[1:],
                          run=options.setting)  # fmt: skip


def fit_both(
    job: PipelineJob, options: Options, steps: int, every: int, right: torch.Tensor
) -> tuple[float, float, float, float]:
    """The work of a table, and the decibels with each kind of weights."""
    pipe = job.pipeline
    plain = Schedule.interval(every=every, warmup=WARMUP).forecast(options.order)
    inputs = make_job(pipe, options, FIT_SEED, options.fitted_on).inputs

    def fit(teacher: Teacher | None) -> Schedule:
        return dqar_fx.fit_forecasts(
            pipe,
            inputs,
            plain,
            sites=options.sites,
            num_steps=steps,
            seed=FIT_SEED,
            teacher=teacher,
            guidance_scale=options.guidance,
        )

    decibels, work = [], 0.0
    for schedule in (plain, fit(None), fit(Teacher(options.teacher))):
        denoiser = dqar_fx.transform(pipe.transformer, schedule, sites=options.sites)
        decibels.append(psnr(right, run_with(job, pipe.scheduler, steps, denoiser)))
        work = count_work(denoiser)
    return (work, *decibels)  # type: ignore[return-value]  # three of them


COLUMNS = [
    Column("solver", "solver"),
    Column("steps", "steps"),
    Column("every", "every"),
    Column("evaluations' worth", "evaluations", ".1f"),
    Column("all computed, dB", "without_db", ".1f"),
    Column("polynomial's weights", "polynomial_db", ".1f"),
    Column("fitted to the model", "to_model_db", ".1f"),
    Column("fitted to the teacher", "to_teacher_db", ".1f"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Fit, compare, print and write."""
    pipe = load_pipeline(options)
    machine = describe_machine(options.device or torch.device("cpu"))
    rows: list[Row] = []
    path = options.out / "rows.jsonl"
    with warnings.catch_warnings(action="ignore"):  # schedulers of diffusers, with numpy 2
        for row in compare(pipe, options):
            rows.append(row)
            write_rows(rows, path, machine)
    print(format_table(COLUMNS, rows, 1), machine, sep="\n\n")
    print(f"PSNR in decibels to {Teacher(options.teacher)}; wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
