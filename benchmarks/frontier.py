"""The frontier: nearest to the converged pictures in a time, solver and reuse found together.

For each budget, told in evaluations that compute everything, `dqar_fx.optimise` searches the
number of steps, the solver, its timesteps, the steps that compute, and weights of forecasts
in the others. What it finds is compared on pictures of seeds that nothing was fitted on: with
the best solver of diffusers in as many whole evaluations, and with our own fitted solver
without reuse. Searches are kept in the folder, and go on where they were stopped. With
``--repeats`` the denoisers are timed as well, in turns with that of the plain solver.

Examples::

    python -m benchmarks.frontier                                # the reference pipeline
    python -m benchmarks.frontier --evaluations 8 --repeats 10   # one budget, timed
    python -m benchmarks.frontier --quick --out results/quick    # does it run at all?
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import torch

import dqar_fx
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import (
    Count,
    Lowering,
    above,
    as_compile,
    at_least,
    quick_flag,
    run_command,
    several,
)
from benchmarks.harness.pipelines import load_pipeline
from benchmarks.harness.rows import SHARED, write_rows
from benchmarks.harness.tables import Column, format_table, show
from benchmarks.harness.timing import find_quartiles, take_ratios
from benchmarks.solvers import FitOptions, Setting, list_solvers, make_job
from dqar_fx import Optimum, Teacher
from dqar_fx.optimiser.optimise_table import HELD_OUT_SEEDS
from dqar_fx.optimiser.step_costs import time_calls
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr

QUICK = {
    "evaluations": (5.0,),
    "pictures": 2,
    "fitted_on": 2,
    "rounds": 1,
    "teacher": 12,
    "trials": 2,
    "lowering": "eager",
    "repeats": 1,
}


@dataclass(frozen=True)
class Row:
    """What was found for one budget.

    Attributes:
        evaluations: The budget, in evaluations that compute everything.
        pattern: Of what was found: a letter for each step, C computes, F forecasts.
        order: Of its forecasts; 0 without.
        predicted: Its price in evaluations, by the prices of steps.
        parts: Decibels to converged of each part alone and of all, by name.
        stock_db: Of the best solver of diffusers in as many whole evaluations.
        stock: Its name and spacing.
        measured: Its time in evaluations of the plain solver beside it: the median of paired
            trajectories; None where it was not timed.
        quartiles: Of that.
        run: What all rows share.
    """

    evaluations: float
    pattern: str
    order: int
    predicted: float
    parts: dict[str, float]
    stock_db: float
    stock: str
    measured: float | None = None
    quartiles: tuple[float, float] | None = None
    run: Setting | None = field(default=None, metadata=SHARED)

    @property
    def psnr_db(self) -> float:
        """Decibels to converged of what was found."""
        return self.parts.get("all", self.without_db)

    @property
    def without_db(self) -> float:
        """Decibels to converged of the fitted solver without reuse."""
        return self.parts["solver without reuse"]

    @property
    def above_stock_db(self) -> float:
        """By how much it is nearer than the best solver of diffusers."""
        return self.psnr_db - self.stock_db

    @property
    def above_without_db(self) -> float:
        """By how much it is nearer than our own solver without reuse."""
        return self.psnr_db - self.without_db


@dataclass(frozen=True)
class Options(FitOptions):
    """Options of this command."""

    COMMAND = "benchmarks.frontier"
    QUICK = QUICK

    evaluations: Annotated[tuple[float, ...], several(above(1.0))] = (6, 8, 10, 12, 16, 25)
    """Budgets, in evaluations that compute everything."""
    lowering: Lowering = "regional"
    """What is compiled."""
    trials: Count = 8
    """Patterns to fit."""
    sites: str = "all"
    """What reuses and forecasts."""
    repeats: Annotated[int, at_least(0)] = 0
    """Pairs of trajectories to time; 0 for none."""
    out: Path = Path("results/frontier")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def search(pipe: Any, options: Options, evaluations: float) -> Optimum:
    """Find the best within a budget."""
    return dqar_fx.optimise(
        pipe,
        make_job(pipe, options, 0, options.fitted_on).inputs,
        evaluations=evaluations,
        teacher=Teacher(options.teacher),
        sites=options.sites,
        trials=options.trials,
        rounds=options.rounds,
        judged_on=make_job(pipe, options, 0, options.pictures).inputs,
        batch_size=min(24, options.fitted_on),
        compile=as_compile(options.lowering),
        folder=options.out / f"{evaluations:g}",
        guidance_scale=options.guidance,
    )


def find_stock(job: PipelineJob, evaluations: float, right: torch.Tensor) -> tuple[float, str]:
    """The best solver of diffusers in as many whole evaluations: decibels and name."""
    found = [
        (psnr(right, run_with(job, scheduler, steps)), f"{name}, {spacing}")
        for name, spacing, scheduler, steps in list_solvers(job.pipeline, int(evaluations))
    ]
    return max(pair for pair in found if isfinite(pair[0]))


def time_pairs(pipe: Any, options: Options, optimum: Optimum, num_steps: int) -> list[float]:
    """The denoiser's time for what was found, by that of an evaluation, for each pair."""
    job = make_job(pipe, options, 0, min(24, options.pictures))
    lowering = as_compile(options.lowering)
    assert optimum.scheduler is not None
    plain_solver = Teacher(num_steps).scheduler_for(pipe)
    made = {
        "plain": (dqar_fx.Schedule.from_actions("C" * num_steps), plain_solver),
        "found": (optimum.schedule, optimum.scheduler),
    }
    subjects = {
        name: (
            dqar_fx.transform(
                pipe.transformer, schedule, sites=options.sites, compile=lowering
            ),
            solver,
            schedule.num_steps,
        )
        for name, (schedule, solver) in made.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for repeat in range(1 + options.repeats):
        for name in sorted(subjects, reverse=bool(repeat % 2)):
            denoiser, solver, steps = subjects[name]
            times = time_calls(denoiser, partial(run_with, job, solver, steps, denoiser))
            seconds[name].append(sum(times))
    ratios = take_ratios(seconds["found"][1:], seconds["plain"][1:])
    return [num_steps * ratio for ratio in ratios]


def compare(pipe: Any, options: Options, evaluations: float) -> Row:
    """Search within one budget, and compare what is found."""
    optimum = search(pipe, options, evaluations)
    job = make_job(pipe, options, HELD_OUT_SEEDS, options.pictures)
    right = Teacher(options.teacher).pictures(job)
    stock_db, stock = find_stock(job, evaluations, right)
    table = optimum.table
    times = time_pairs(pipe, options, optimum, int(evaluations)) if options.repeats else []
    spread = find_quartiles(times) if times else None
    return Row(
        evaluations,
        "".join(row[0].letter for row in table.rows).replace("S", "C"),
        int(table.orders.max()),
        int(evaluations) * optimum.point.ms / optimum.front.full_ms,
        dict(optimum.ablation),
        stock_db,
        stock,
        None if spread is None else spread.median,
        None if spread is None else (spread.low, spread.high),
        options.setting,
    )


def list_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of the table, with one for each part that was fitted alone."""
    parts = dict.fromkeys(name for row in rows for name in row.parts)
    return [
        Column("evaluations", "evaluations", "g"),
        Column("pattern", "pattern"),
        Column("order", "order"),
        Column("its price", "predicted", ".2f"),
        Column("its time", "measured", ".2f"),
        Column("to converged, dB", "psnr_db", ".1f"),
        Column("best of diffusers", lambda row: f"{row.stock_db:.1f} ({row.stock})"),
        Column("above it", "above_stock_db", "+.1f"),
        Column("above the fitted solver", "above_without_db", "+.1f"),
        *(
            Column(name, lambda row, name=name: show(row.parts.get(name), ".1f"))  # type: ignore[misc]
            for name in parts
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Search, compare, print and write."""
    pipe = load_pipeline(options)
    machine = describe_machine(options.device or torch.device("cpu"))
    rows: list[Row] = []
    path = options.out / "rows.jsonl"
    with warnings.catch_warnings(action="ignore"):  # schedulers of diffusers, with numpy 2
        for evaluations in options.evaluations:
            rows.append(compare(pipe, options, evaluations))
            write_rows(rows, path, machine, also=("psnr_db", "above_stock_db"))
    print(format_table(list_columns(rows), rows), machine, sep="\n\n")
    print(f"PSNR in decibels to {Teacher(options.teacher)}; wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
