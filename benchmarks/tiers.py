"""Schedule tiers on both reference models, several solvers and numbers of steps.

For each: the work in evaluations' worth of multiply-accumulates, how near the pictures are to
those of the same solver without reuse, and how near to the converged ones. Beside it stands
what the same solver comes to without reuse at as much work, read off the line between the
numbers of steps that were run. A summary has the range over models and solvers. What is in the
folder already is not measured again.

Examples::

    python -m benchmarks.tiers                            # everything, about half an hour
    python -m benchmarks.tiers --solvers DDIM --steps 50  # one table, in a minute or two
    python -m benchmarks.tiers --quick --out results/quick
"""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any

import torch

import dqar_fx
from benchmarks.ablation.protocol import SEED
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.options import (
    Count,
    at_least,
    convert_with,
    one_of,
    quick_flag,
    run_command,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions, load_pipeline, model_name
from benchmarks.harness.rows import SHARED, append_rows, read_rows, write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.timing import find_range
from benchmarks.reference import PIPELINE, SMALL
from benchmarks.solvers import count_work, make_job, make_solver, read_off
from dqar_fx import Teacher
from dqar_fx.optimiser.teacher import TEACHER_STEPS, run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr
from dqar_fx.schedule.schedule_tiers import TIERS

QUICK = {
    "models": (str(SMALL),), "solvers": ("DDIM",), "steps": (20,), "fewer": (12,),
    "pictures": 2, "teacher": 12,
}  # fmt: skip
SOLVERS = {
    "DDIM": "leading",
    "DPM-Solver++ 2M": "trailing",
    "UniPC 2": "trailing",
    "DEIS 2": "Karras",
}
"""Solvers of `benchmarks.solvers` with the spacing of their timesteps."""


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    teacher: str
    pictures: int
    guidance: float


@dataclass(frozen=True)
class Row:
    """One tier with one solver and number of steps.

    Attributes:
        model: Its folder.
        solver: Its name.
        steps: Evaluations without reuse.
        tier: Name of the tier; None without one.
        evaluations: Multiply-accumulates by those of one step that computes all.
        own_db: PSNR to the pictures of the same steps without reuse; infinite where all is
            computed.
        converged_db: PSNR to the teacher's pictures.
        loss_db: By how much that is above that of the same steps without reuse; below 0 for a
            loss.
        gain_db: By how much it is above the same solver's without reuse at as much work; None
            where no fewer steps were run.
        run: What all rows share.
    """

    model: str
    solver: str
    steps: int
    tier: str | None
    evaluations: float
    own_db: float
    converged_db: float
    loss_db: float
    gain_db: float | None
    run: Setting | None = field(default=None, metadata=SHARED)


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of this command."""

    COMMAND = "benchmarks.tiers"
    QUICK = QUICK

    models: Annotated[tuple[str, ...], several(convert_with(str, "FOLDER"))] = (
        str(PIPELINE),
        str(SMALL),
    )
    """Pipeline folders; they stand in the place of --model."""
    solvers: Annotated[tuple[str, ...], several(one_of(tuple(SOLVERS)))] = tuple(SOLVERS)
    """Names of solvers."""
    steps: Annotated[tuple[int, ...], several(at_least(2))] = (10, 15, 20, 30, 50)
    """Steps of the runs."""
    fewer: Annotated[tuple[int, ...], several(at_least(2), none_allowed=True)] = (5, 7, 12)
    """Steps of further runs without reuse, to compare with."""
    guidance: float = 1.5
    """Guidance scale."""
    pictures: Count = 24
    """To compare."""
    teacher: Annotated[int, at_least(2)] = TEACHER_STEPS
    """Steps of DPM-Solver++ (2M) that count as converged."""
    out: Path = Path("results/tiers")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    @property
    def setting(self) -> Setting:
        """What rows share."""
        return Setting(str(Teacher(self.teacher)), self.pictures, self.guidance)


@dataclass
class Bench:
    """One model, its converged pictures, and a denoiser of it that all tiers share.

    Attributes:
        job: What is generated.
        denoiser: A denoiser of any tier.
        right: The teacher's pictures.
        run: What rows share.
    """

    job: PipelineJob
    denoiser: dqar_fx.Denoiser
    right: torch.Tensor
    run: Setting

    @classmethod
    def of(cls, options: Options, model: str) -> "Bench":
        """Load a model, and make the teacher's pictures."""
        pipe = load_pipeline(replace(options, model=model))
        job = make_job(pipe, options, SEED, options.pictures)
        denoiser = dqar_fx.transform(pipe.transformer, next(iter(TIERS)))
        return cls(job, denoiser, Teacher(options.teacher).pictures(job), options.setting)

    def rows(self, model: str, solver: str, options: Options) -> Iterator[Row]:
        """All tiers with one solver, at all numbers of steps."""
        scheduler = make_solver(self.job.pipeline, solver, SOLVERS[solver])
        plain = {
            steps: run_with(self.job, scheduler, steps)
            for steps in sorted({*options.steps, *options.fewer})
        }
        known = {steps: psnr(self.right, images) for steps, images in plain.items()}
        for steps in options.steps:
            yield Row(
                model, solver, steps, None, steps, inf, known[steps], 0.0, None, self.run
            )
            for tier in TIERS:
                images, work = self.try_tier(tier, scheduler, steps)
                converged = psnr(self.right, images)
                yield Row(
                    model,
                    solver,
                    steps,
                    tier,
                    work,
                    inf if torch.equal(images, plain[steps]) else psnr(plain[steps], images),
                    converged,
                    converged - known[steps],
                    gain_at(known, work, converged),
                    self.run,
                )

    def try_tier(self, tier: str, scheduler: Any, steps: int) -> tuple[torch.Tensor, float]:
        """The pictures of a tier, and the evaluations' worth of its multiply-accumulates."""
        denoiser = self.denoiser.with_schedule(tier)
        images = run_with(self.job, scheduler, steps, denoiser)
        return images, count_work(denoiser)


def gain_at(known: Mapping[int, float], work: float, found_db: float) -> float | None:
    """By how much decibels are above those without reuse at as much work.

    Args:
        known: Decibels without reuse, by number of steps; read off the line between them.
        work: In evaluations.
        found_db: What is compared.
    """
    without_db = read_off(known, work)
    return None if without_db is None else found_db - without_db


@dataclass(frozen=True)
class Summary:
    """One tier at one number of steps: the lowest and highest of all models and solvers.

    Attributes:
        steps: Evaluations without reuse.
        tier: Name of the tier.
        computed: Steps that compute.
        evaluations: Multiply-accumulates by those of one step that computes all, the most.
        own_low_db: PSNR to the pictures of the same steps without reuse.
        own_high_db: The same.
        loss_low_db: By how much it is nearer to converged pictures than without reuse.
        loss_high_db: The same.
        gain_low_db: By how much it is nearer than without reuse at as much work.
        gain_high_db: The same.
        run: What all rows share.
    """

    steps: int
    tier: str
    computed: int
    evaluations: float
    own_low_db: float
    own_high_db: float
    loss_low_db: float
    loss_high_db: float
    gain_low_db: float | None
    gain_high_db: float | None
    run: Setting | None = field(default=None, metadata=SHARED)

    @classmethod
    def of(cls, steps: int, tier: str, rows: Sequence[Row]) -> "Summary":
        """Summarise rows of one tier and number of steps."""
        own, loss = (find_range([getattr(r, n) for r in rows]) for n in ("own_db", "loss_db"))
        gains = [row.gain_db for row in rows if row.gain_db is not None]
        gain = find_range(gains) if gains else None
        return cls(
            steps,
            tier,
            len(TIERS[tier].computed(steps)),
            max(row.evaluations for row in rows),
            own.low,
            own.high,
            loss.low,
            loss.high,
            None if gain is None else gain.low,
            None if gain is None else gain.high,
            run=rows[0].run,
        )


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Summarise rows, by number of steps and tier."""
    lengths = sorted({row.steps for row in rows})
    of = {
        (n, t): [r for r in rows if (r.steps, r.tier) == (n, t)]
        for n in lengths
        for t in TIERS
    }
    return [Summary.of(n, t, found) for (n, t), found in of.items() if found]


COLUMNS = [
    Column("model", "model"),
    Column("solver", "solver"),
    Column("steps", "steps"),
    Column("tier", "tier"),
    Column("evaluations' worth", "evaluations", ".2f"),
    Column("to the same without reuse, dB", "own_db", ".1f"),
    Column("to converged, dB", "converged_db", ".1f"),
    Column("above without reuse, dB", "loss_db", "+.1f"),
    Column("above without reuse at as much work, dB", "gain_db", "+.1f"),
]
SUMMARY = [
    Column("steps", "steps"),
    Column("tier", "tier"),
    Column("evaluations' worth", "evaluations", ".2f"),
    Column("to the same without reuse, dB", "own_low_db", ".1f"),
    Column("to", "own_high_db", ".1f"),
    Column("above without reuse, dB", "loss_low_db", "+.1f"),
    Column("to", "loss_high_db", "+.1f"),
    Column("above without reuse at as much work, dB", "gain_low_db", "+.1f"),
    Column("to", "gain_high_db", "+.1f"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write, solver by solver."""
    machine = describe_machine(options.device or torch.device("cpu"))
    path = options.out / "rows.jsonl"
    with warnings.catch_warnings(action="ignore"):  # schedulers of diffusers; short runs
        for model in options.models:
            measure_model(model, options, path, machine)
    rows = [row for row in read_rows(path, Row) if row.run == options.setting]
    summary = summarise(rows)
    write_rows(summary, options.out / "summary.jsonl", machine)
    print(format_table(COLUMNS, rows, num_left=4), format_table(SUMMARY, summary), sep="\n\n")
    print(f"\n{machine}\nPSNR in decibels to {Teacher(options.teacher)}; wrote {options.out}")


def measure_model(model: str, options: Options, path: Path, machine: Machine) -> None:
    """Measure a model with the solvers that the file lacks."""
    name = model_name(model)
    known = {
        row.solver
        for row in read_rows(path, Row)
        if (row.model, row.run) == (name, options.setting)
    }
    missing = [solver for solver in options.solvers if solver not in known]
    bench = Bench.of(options, model) if missing else None
    for solver in missing:
        assert bench is not None
        append_rows(list(bench.rows(name, solver, options)), path, machine)
        print(f"{name}, {solver}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
