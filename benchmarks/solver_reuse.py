"""What reuse adds to a fitted solver: both are fitted together, and compared at equal work.

A row is a pattern of actions, a letter for each step: C computes, F forecasts all sites, and R
reuses them. The solver and the weights of forecasts are fitted to the same teacher as those of
benchmarks.solvers, whose folder tells how near a fitted solver comes without reuse at as many
evaluations: between two numbers of them it is read off the line from one to the other.

Examples::

    python -m benchmarks.solver_reuse --solvers results/solvers
    python -m benchmarks.solver_reuse --patterns CCCFCFCFCFCC --order 1
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

import dqar_fx
from benchmarks import solvers
from benchmarks.ablation.protocol import SEED
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import at_least, convert_with, quick_flag, run_command, several
from benchmarks.harness.pipelines import load_pipeline
from benchmarks.harness.rows import SHARED, read_rows, write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.solvers import FIT_SEED, FITTED, Setting, count_work, make_job, read_off
from dqar_fx import Schedule, Teacher, fit_solver
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr

QUICK = {"patterns": ("CCFC",), "pictures": 2, "fitted_on": 2, "rounds": 1, "teacher": 12}


def read_pattern(text: str) -> str:
    """Refuse what is no pattern.

    Raises:
        ValueError: It is none.
    """
    if len(text) < 2 or set(text) - set("CFR") or text[0] != "C":
        raise ValueError(f"{text!r} is no pattern of C, F and R that begins with C")
    return text


@dataclass(frozen=True)
class Row:
    """One pattern.

    Attributes:
        pattern: A letter for each step.
        sites: What reuses and forecasts.
        order: Of forecasts.
        evaluations: Its multiply-accumulates by those of one step that computes all.
        psnr_db: To the teacher's pictures, of held-out seeds.
        fitted_db: The same of the seeds it was fitted on.
        without_db: That of a fitted solver without reuse, at as many evaluations; None where
            none is known.
        run: What all rows share.
    """

    pattern: str
    sites: str
    order: int
    evaluations: float
    psnr_db: float
    fitted_db: float
    without_db: float | None
    run: Setting | None = field(default=None, metadata=SHARED)

    @property
    def gain_db(self) -> float | None:
        """By how much it is nearer than without reuse."""
        return None if self.without_db is None else self.psnr_db - self.without_db


@dataclass(frozen=True)
class Options(solvers.FitOptions):
    """Options of this command."""

    COMMAND = "benchmarks.solver_reuse"
    QUICK = QUICK

    patterns: Annotated[tuple[str, ...], several(convert_with(read_pattern, "LETTERS"))] = (
        "CCCFCFCFCFCC",
        "CCFCFCFCFCFC",
    )
    """Actions of the steps."""
    sites: str = "all"
    """What reuses and forecasts."""
    order: Annotated[int, at_least(1)] = 2
    """Of forecasts."""
    solvers: Path = Path("results/solvers")
    """What benchmarks.solvers wrote."""
    out: Path = Path("results/solver_reuse")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def fit_pattern(
    options: Options,
    pattern: str,
    job: PipelineJob,
    right: torch.Tensor,
    known: dict[int, float],
) -> Row:
    """Fit one pattern, and compare a job's pictures with the right ones."""
    schedule = Schedule.from_actions(pattern, orders=options.order)
    fitted = fit_solver(
        job.pipeline,
        make_job(job.pipeline, options, FIT_SEED, options.fitted_on).inputs,
        len(pattern),
        schedule=schedule,
        sites=options.sites,
        teacher=Teacher(options.teacher),
        rounds=options.rounds,
        seed=FIT_SEED,
        guidance_scale=options.guidance,
    )
    assert fitted.schedule is not None
    denoiser = dqar_fx.transform(
        job.pipeline.transformer, fitted.schedule, sites=options.sites
    )
    images = run_with(job, fitted.scheduler, len(pattern), denoiser)
    work = count_work(denoiser)
    return Row(
        pattern,
        options.sites,
        options.order,
        work,
        psnr(right, images),
        fitted.psnr_db,
        read_off(known, work),
        options.setting,
    )


def read_known(folder: Path, options: solvers.FitOptions) -> dict[int, float]:
    """Decibels of fitted solvers without reuse, by their evaluations."""
    return {
        row.evaluations: row.psnr_db
        for row in read_rows(folder / "rows.jsonl", solvers.Row)
        if row.solver == FITTED and row.run == options.setting and row.psnr_db is not None
    }


COLUMNS = [
    Column("pattern", "pattern"),
    Column("sites", "sites"),
    Column("order", "order"),
    Column("evaluations' worth", "evaluations", ".2f"),
    Column("to converged, dB", "psnr_db", ".1f"),
    Column("on its own seeds, dB", "fitted_db", ".1f"),
    Column("fitted solver without reuse, dB", "without_db", ".1f"),
    Column("gain, dB", "gain_db", "+.1f"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Fit, print and write."""
    known = read_known(options.solvers, options)
    if not known:
        print(f"{options.solvers} has no fitted solvers of these settings to compare with")
    job = make_job(load_pipeline(options), options, SEED, options.pictures)
    right = Teacher(options.teacher).pictures(job)
    rows = [fit_pattern(options, each, job, right, known) for each in options.patterns]
    machine = describe_machine(options.device or torch.device("cpu"))
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    path = options.out / "rows.jsonl"
    write_rows(rows, path, machine, also=("gain_db",))
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
