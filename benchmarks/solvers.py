"""Solvers at equal numbers of evaluations: whose pictures are nearest to the converged ones.

Each solver of diffusers takes part at several spacings of its timesteps, of which the best
stands for it, and so does a solver that is fitted to the model. Pictures are those of held-out
seeds, compared with the teacher's. An evaluation takes the same time whoever asks for it, so
that what is compared costs the same. Fitted solvers are written to the folder, from which they
are read the next time.

Examples::

    python -m benchmarks.solvers                                   # the reference pipeline
    python -m benchmarks.solvers --evaluations 8 --fitted-on 12    # one budget, sooner
    python -m benchmarks.solvers --quick --out results/quick       # does it run at all?
"""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch

import dqar_fx
from benchmarks.ablation.protocol import SEED
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import (
    Count,
    at_least,
    quick_flag,
    run_command,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions, load_pipeline, name_classes
from benchmarks.harness.rows import SHARED, write_rows
from benchmarks.harness.store import take_fingerprint
from benchmarks.harness.tables import Column, format_table, show
from dqar_fx import MultistepScheduler, Teacher, fit_solver
from dqar_fx.calibration.pipeline_run import count_timesteps
from dqar_fx.optimiser.teacher import TEACHER_STEPS, run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr

QUICK = {"evaluations": (3,), "pictures": 2, "fitted_on": 2, "rounds": 1, "teacher": 12}
SPACINGS: dict[str, dict[str, Any]] = {
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "Karras": {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    "uniform log SNR": {"timestep_spacing": "trailing", "use_lu_lambdas": True},
}
SOLVERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "DDIM": ("DDIMScheduler", {}, ("leading", "trailing")),
    "Euler": ("EulerDiscreteScheduler", {}, ("leading", "trailing", "Karras")),
    "Heun": ("HeunDiscreteScheduler", {}, ("leading", "trailing", "Karras")),
    "DPM-Solver++ 2M": (
        "DPMSolverMultistepScheduler",
        {},
        ("leading", "trailing", "Karras", "uniform log SNR"),
    ),
    "DPM-Solver++ 2M, last sigma above 0": (
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "sigma_min"},
        ("trailing", "Karras"),
    ),
    "DPM-Solver++ 3M": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 3},
        ("leading", "trailing", "Karras", "uniform log SNR"),
    ),
    "UniPC 2": ("UniPCMultistepScheduler", {}, ("leading", "trailing", "Karras")),
    "UniPC 3": (
        "UniPCMultistepScheduler",
        {"solver_order": 3},
        ("leading", "trailing", "Karras"),
    ),
    "DEIS 2": ("DEISMultistepScheduler", {}, ("leading", "trailing", "Karras")),
    "DEIS 3": (
        "DEISMultistepScheduler",
        {"solver_order": 3},
        ("leading", "trailing", "Karras"),
    ),
}
"""Class, options and spacings of each solver of diffusers; all without noise of their own."""
SCALED = ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
"""Schedulers whose samples are scaled before the denoiser sees them."""
TWICE = ("Heun",)
"""Solvers that evaluate twice in each step but the last."""
FITTED = "fitted"
FIT_SEED = 250_000


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        teacher: Whose pictures count as converged.
        pictures: How many are compared.
        guidance: Guidance scale.
        fitted_on: Pictures that solvers are fitted on.
    """

    teacher: str
    pictures: int
    guidance: float
    fitted_on: int


@dataclass(frozen=True)
class Row:
    """One solver at one number of evaluations.

    Attributes:
        evaluations: Calls of the denoiser, guidance's halves counted once.
        solver: Its name.
        spacing: Of its timesteps; ``"fitted"`` where that was fitted.
        psnr_db: To the teacher's pictures, in decibels; None where it gave no numbers.
        start_db: What a fit began with, on the same pictures; None without a fit.
        fitted_db: What it came to on the pictures that it was fitted on.
        run: What all rows share.
    """

    evaluations: int
    solver: str
    spacing: str
    psnr_db: float | None
    start_db: float | None = None
    fitted_db: float | None = None
    run: Setting | None = field(default=None, metadata=SHARED)


@dataclass(frozen=True)
class FitOptions(PipelineOptions):
    """Options of a fit, and of what it is judged by."""

    guidance: float = 1.5
    """Guidance scale."""
    pictures: Count = 48
    """To compare, of seeds that nothing was fitted on."""
    fitted_on: Count = 24
    """Pictures to fit on."""
    rounds: Count = 10
    """Rounds of a fit."""
    teacher: Annotated[int, at_least(2)] = TEACHER_STEPS
    """Steps of DPM-Solver++ (2M) that count as converged."""

    @property
    def setting(self) -> Setting:
        """What rows that are compared have to share."""
        teacher = str(Teacher(self.teacher))
        return Setting(teacher, self.pictures, self.guidance, self.fitted_on)


@dataclass(frozen=True)
class Options(FitOptions):
    """Options of this command."""

    COMMAND = "benchmarks.solvers"
    QUICK = QUICK

    evaluations: Annotated[tuple[int, ...], several(at_least(2))] = (6, 8, 10, 12, 16, 25)
    """Calls of the denoiser."""
    out: Path = Path("results/solvers")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def make_job(pipe: Any, options: FitOptions, seed: int, pictures: int) -> PipelineJob:
    """Pictures of all classes in turn."""
    known = sorted(name_classes(pipe))
    labels = tuple(known[number % len(known)] for number in range(pictures))
    return PipelineJob(pipe, labels, seed, 0, 24, {"guidance_scale": options.guidance})


def count_work(denoiser: Any) -> float:
    """The latest run's multiply-accumulates by those of one step that computes all."""
    (stream,) = dqar_fx.summary(denoiser).runs[-1].streams
    return len(stream.steps) * (stream.share_of_macs or 1.0)


def read_off(known: Mapping[int, float], work: float) -> float | None:
    """Decibels at some work, off the line between numbers of evaluations; None outside."""
    numbers = sorted(known)
    if not numbers or not numbers[0] <= work <= numbers[-1]:
        return None
    return float(np.interp(work, numbers, [known[number] for number in numbers]))


def list_solvers(pipe: Any, evaluations: int) -> Iterator[tuple[str, str, Any, int]]:
    """Name, spacing, scheduler and steps of each that takes so many evaluations."""
    for name, (_, _, spacings) in SOLVERS.items():
        steps = (evaluations + 1) // 2 if name in TWICE else evaluations
        for spacing in spacings:
            made = make_solver(pipe, name, spacing)
            if count_timesteps(made, steps) == evaluations:
                yield name, spacing, made, steps


def make_solver(pipe: Any, name: str, spacing: str) -> Any:
    """A scheduler of diffusers for a pipeline's model."""
    kind, changes, _ = SOLVERS[name]
    config = pipe.scheduler.config
    made = getattr(diffusers, kind).from_config(config, **changes, **SPACINGS[spacing])
    return made if kind not in SCALED else Unscaled(made)


class Unscaled:
    """A scheduler whose samples grow with their noise, for pipelines that do not scale them.

    DiTPipeline begins with noise of variance 1, and hands the input of the denoiser, not the
    sample that it was made of, to ``step``. Outside, samples are ``alpha * data + sigma *
    noise``, where squares add up to 1; inside, ``data + sigma / alpha * noise``.

    Args:
        inner: The scheduler.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """The scheduler's own."""
        if name == "inner":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def scale_model_input(self, sample: torch.Tensor, *_: Any) -> torch.Tensor:
        """The sample, which is as the denoiser expects it."""
        return sample

    def step(
        self, output: torch.Tensor, timestep: Any, sample: torch.Tensor, **given: Any
    ) -> Any:
        """Go on to the next timestep."""
        if self.inner.step_index is None:
            self.inner._init_step_index(timestep)
        index, sigmas = self.inner.step_index, self.inner.sigmas
        before, after = ((1 + sigmas[i] ** 2).sqrt().to(sample) for i in (index, index + 1))
        found = self.inner.step(output, timestep, sample * before, **given)
        found.prev_sample = found.prev_sample / after
        return found


def compare(pipe: Any, options: Options) -> Iterator[Row]:
    """All solvers at all numbers of evaluations."""
    job = make_job(pipe, options, SEED, options.pictures)
    teacher = Teacher(options.teacher)
    right = teacher.pictures(job)
    run = options.setting
    for evaluations in options.evaluations:
        for name, spacing, scheduler, steps in list_solvers(pipe, evaluations):
            found = psnr(right, run_with(job, scheduler, steps))
            yield Row(evaluations, name, spacing, None if isnan(found) else found, run=run)
        scheduler, fit = fit_or_read(pipe, options, evaluations, teacher)
        found = psnr(right, run_with(job, scheduler, evaluations))
        yield Row(evaluations, FITTED, FITTED, found, **fit, run=run)


def fit_or_read(
    pipe: Any, options: Options, evaluations: int, teacher: Teacher
) -> tuple[MultistepScheduler, dict[str, float]]:
    """A fitted solver, and what is known of its fit: from the folder, if it is of this run."""
    folder = options.out / f"fitted-{evaluations}"
    weights = take_fingerprint(pipe.transformer, pipe.vae)
    wanted = {
        "weights": weights,
        "teacher": options.teacher,
        "guidance": options.guidance,
        "fitted_on": options.fitted_on,
        "rounds": options.rounds,
        "dtype": options.dtype,
    }
    note = folder / "fit.json"
    known = json.loads(note.read_text()) if note.exists() else {}
    if known.get("settings") == wanted:
        return MultistepScheduler.from_pretrained(folder), known["found"]
    inputs = make_job(pipe, options, FIT_SEED, options.fitted_on).inputs
    fitted = fit_solver(
        pipe,
        inputs,
        evaluations,
        teacher=teacher,
        rounds=options.rounds,
        seed=FIT_SEED,
        guidance_scale=options.guidance,
    )
    fitted.scheduler.save_pretrained(folder)
    found = {"start_db": fitted.held_out_start_db, "fitted_db": fitted.psnr_db}
    note.write_text(json.dumps({"settings": wanted, "found": found}) + "\n")
    return fitted.scheduler, found


@dataclass(frozen=True)
class Budget:
    """The best of each solver at one number of evaluations.

    Attributes:
        evaluations: The number.
        by_solver: The best row of each solver, by its name.
    """

    evaluations: int
    by_solver: dict[str, Row]

    def show(self, name: str) -> str:
        """Decibels of a solver with its spacing; a dash where it did not take part."""
        row = self.by_solver.get(name)
        if row is None:
            return "-"
        return show(row.psnr_db, ".1f") + ("" if name == FITTED else f" ({row.spacing})")

    @property
    def gain_db(self) -> float:
        """By how much the fitted one is above the best other."""
        fitted, *others = sorted(self.by_solver.values(), key=lambda row: row.solver != FITTED)
        return (fitted.psnr_db or 0) - max(row.psnr_db or 0 for row in others)


def find_best(rows: Sequence[Row]) -> list[Budget]:
    """Of each solver at each number of evaluations its best spacing."""
    budgets = []
    for evaluations in dict.fromkeys(row.evaluations for row in rows):
        best: dict[str, Row] = {}
        for row in rows:
            known = best.get(row.solver)
            is_better = known is None or (row.psnr_db or 0) > (known.psnr_db or 0)
            if row.evaluations == evaluations and is_better:
                best[row.solver] = row
        budgets.append(Budget(evaluations, best))
    return budgets


def list_columns() -> list[Column]:
    """The columns of the table: a solver each."""
    names = [*SOLVERS, FITTED]
    shown = [Column(name, lambda row, name=name: row.show(name)) for name in names]  # type: ignore[misc]
    return [
        Column("evaluations", "evaluations"),
        *shown,
        Column("above the best other, dB", "gain_db", "+.1f"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Compare, print and write."""
    pipe = load_pipeline(options)
    machine = describe_machine(options.device or torch.device("cpu"))
    rows = []
    with warnings.catch_warnings(action="ignore"):  # schedulers of diffusers, with numpy 2
        for row in compare(pipe, options):
            rows.append(row)
            print(f"{row.evaluations} {row.solver}, {row.spacing}: {show(row.psnr_db, '.2f')}")
    path = options.out / "rows.jsonl"
    write_rows(rows, path, machine)
    print(format_table(list_columns(), find_best(rows)), machine, sep="\n\n")
    print(f"PSNR in decibels to {Teacher(options.teacher)}; wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
