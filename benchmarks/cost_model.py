"""Predicted against measured time of trajectories, on schedules that nothing was fitted to.

In each of some rounds, each distinct region is timed in a few made-up steps, then operators
one by one; then trajectories of all schedules in turns, so that predictions and trajectories
see the same machine. Nothing is fitted to trajectories, and schedules whose steps have all
sites alike, which are easiest, are not judged. Each trajectory has a prompt that the one
before it had not, so that it evaluates conditioning. Only the denoiser's calls count.

Examples::

    python -m benchmarks.cost_model                     # reference pipeline, batch 2
    python -m benchmarks.cost_model --batch 16
    python -m benchmarks.cost_model --model geometry --steps 8 --repeats 1    # DiT-S/2
    python -m benchmarks.cost_model --drawn 1           # six schedules drawn at random
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from tqdm import tqdm

import dqar_fx
from benchmarks.harness.geometry import GeometryOptions, draw_timesteps
from benchmarks.harness.machine import describe_machine, set_up_compiler
from benchmarks.harness.options import Count, above, at_least, default_is, run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.timing import find_range, time_steps
from benchmarks.lossless import Subject
from benchmarks.reference import PIPELINE, SMALL

CPU = torch.device("cpu")
LOWERING: str | None = "regional"
BAR = 0.1
from_actions = dqar_fx.Schedule.from_actions
NUM_DRAWN = 6
REFERENCES = {"reference": PIPELINE, "small": SMALL}


@dataclass
class Row:
    """A schedule, as predicted and as measured.

    Attributes:
        schedule: Its name.
        is_judged: Whether it has steps in which sites differ.
        reuse_ratio: Share of cells that compute nothing.
        gmacs: Of a trajectory.
        ceiling: By MACs.
        cache_bytes: Of the slots, as predicted.
        allocated_bytes: Of the slots, as measured.
        regions_ms: Of a trajectory, predicted by regions, per round.
        operators_ms: The same by operators.
        measured_ms: Of each repeat, per round.
    """

    schedule: str
    is_judged: bool
    reuse_ratio: float
    gmacs: float
    ceiling: float
    cache_bytes: int
    allocated_bytes: int = 0
    regions_ms: list[float] = field(default_factory=list)
    operators_ms: list[float] = field(default_factory=list)
    measured_ms: list[list[float]] = field(default_factory=list)

    @property
    def all_ms(self) -> list[float]:
        """What was measured, in all rounds."""
        return [ms for each in self.measured_ms for ms in each]

    def ratios(self, predicted_ms: Sequence[float]) -> list[float]:
        """Predicted by the median that was measured, per round."""
        pairs = zip(predicted_ms, self.measured_ms, strict=True)
        return [ms / statistics.median(each) for ms, each in pairs]

    @property
    def ratio(self) -> float:
        """By regions: the median round's."""
        return statistics.median(self.ratios(self.regions_ms))

    @property
    def operators_ratio(self) -> float:
        """By operators: the median round's."""
        return statistics.median(self.ratios(self.operators_ms))


def list_schedules(
    num_steps: int, num_sites: int, seed: int | None
) -> dict[str, dqar_fx.Schedule]:
    """Those to be predicted: written ones, or drawn at random where there is a seed."""
    if seed is None:
        return make_schedules(num_steps, num_sites)
    rng = np.random.default_rng(seed)
    return {
        f"drawn, {share:.0%} of all": from_actions(
            (rng.random((num_steps, num_sites)) < share) & (np.arange(num_steps)[:, None] > 0)
        )
        for share in rng.permuted(np.linspace(0.15, 0.9, NUM_DRAWN))
    }


def make_schedules(num_steps: int, num_sites: int) -> dict[str, dqar_fx.Schedule]:
    """Two whose steps are all alike in each site, and six of others."""
    step, site = np.arange(num_steps)[:, None], np.arange(num_sites)[None, :]
    drawn = np.random.default_rng(0).random((num_steps, num_sites)) < 0.5
    warmup = max(num_steps // 10, 1)
    return {
        "compute all": dqar_fx.Schedule.compute_all(num_steps),
        "every 3rd": dqar_fx.Schedule.interval(num_steps, 3),
        "linear": dqar_fx.Schedule.linear(num_steps, warmup),
        "linear, max_age=3": dqar_fx.Schedule.linear(num_steps, warmup, max_age=3),
        "odd sites, every 3rd": from_actions((site % 2 == 1) & (step % 3 > 0)),
        "first half of sites, every 2nd": from_actions(
            (2 * site < num_sites) & (step % 2 > 0)
        ),
        "every 2nd to 4th by site": from_actions(step % (2 + site % 3) > 0),
        "drawn, half of all": from_actions(drawn & (step > 0)),
    }


def count_rows(
    denoiser: dqar_fx.Denoiser, schedules: Mapping[str, dqar_fx.Schedule]
) -> dict[str, Row]:
    """Rows without times."""
    sites, around = denoiser.table.sites, denoiser.table.around
    tables = {name: each.resolve(sites, around) for name, each in schedules.items()}
    reports = dqar_fx.compare(denoiser, schedules, device="A100")
    return {
        name: Row(
            schedule=name,
            is_judged=any(len(set(row)) > 1 for row in tables[name].rows),
            reuse_ratio=tables[name].reuse_ratio,
            gmacs=report.macs / 1e9,
            ceiling=report.ceiling,
            cache_bytes=report.cache_bytes,
        )
        for name, report in reports.items()
    }


def run_rounds(
    subject: Subject,
    denoiser: dqar_fx.Denoiser,
    schedules: Mapping[str, dqar_fx.Schedule],
    rows: Mapping[str, Row],
    options: "Options",
) -> dqar_fx.Report:
    """Predict and measure in turns; the last report of the last schedule."""
    denoisers = {name: denoiser.with_schedule(each) for name, each in schedules.items()}
    timesteps, prompts = draw_timesteps(options.steps), count(1)

    def run_trajectory(name: str, prompt: int) -> float:
        own = replace(subject, prompt=prompt)
        return 1e3 * sum(time_steps(denoisers[name], own, timesteps))

    for number in tqdm(range(options.rounds), desc="measure", unit="round"):
        profile = dqar_fx.measure_profile(
            denoiser, tuple(schedules.values()), by="regions", budget_s=options.budget
        )
        reports = dqar_fx.compare(denoiser, schedules, device=profile)
        by_operators = dqar_fx.compare(
            denoiser, schedules, device=replace(profile, region_s={})
        )
        if not number:
            for name in rows:
                run_trajectory(name, prompt=0)
        for name, row in rows.items():
            row.regions_ms.append(reports[name].ms)
            row.operators_ms.append(by_operators[name].ms)
            row.measured_ms.append([])
        for prompt in islice(prompts, options.repeats):
            for name, row in rows.items():
                row.measured_ms[-1].append(run_trajectory(name, prompt))
    for name, row in rows.items():
        streams = denoisers[name].program.streams.values()
        row.allocated_bytes = sum(stream.slots.nbytes for stream in streams)
    return reports[next(reversed(rows))]


COLUMNS = (
    Column("schedule", "schedule"),
    Column("judged", lambda row: "yes" if row.is_judged else ""),
    Column("reuse", "reuse_ratio", ".3f"),
    Column("ceiling", "ceiling", ".2f"),
    Column("slot bytes", "cache_bytes", ","),
    Column("allocated", "allocated_bytes", ","),
    Column("predicted ms", lambda row: statistics.median(row.regions_ms), ".1f"),
    Column("measured ms", lambda row: find_range(row.all_ms), ".1f"),
    Column("ratio (rounds)", lambda row: find_range(row.ratios(row.regions_ms)), ".3f"),
    Column(
        "ratio by operators (rounds)",
        lambda row: find_range(row.ratios(row.operators_ms)),
        ".3f",
    ),
)


def format_verdict(rows: Sequence[Row]) -> str:
    """How many schedules are predicted well enough, and whether slot bytes are exact."""
    judged = [row for row in rows if row.is_judged]
    lines = [
        f"{way}: {sum(abs(ratio - 1) <= BAR for ratio in ratios)} of {len(judged)} judged "
        f"schedules within {BAR:.0%} ({min(ratios):.3f} to {max(ratios):.3f})"
        for way, ratios in (
            ("by regions", [row.ratio for row in judged]),
            ("by operators", [row.operators_ratio for row in judged]),
        )
    ]
    exact = sum(row.cache_bytes == row.allocated_bytes for row in rows)
    return "\n".join([*lines, f"slot bytes: exact in {exact} of {len(rows)}"])


@dataclass(frozen=True)
class Options(GeometryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.cost_model"
    WHY_COMPILER = "this times compiled trajectories"

    model: Literal["geometry", "reference", "small"] = "reference"
    """A shipped pipeline, or random weights of the given size."""
    steps: Annotated[int, at_least(4)] = 20
    """Of a trajectory."""
    rounds: Count = 3
    """Of predictions and measurements."""
    repeats: Count = 2
    """Trajectories of each per round."""
    budget: Annotated[float, above(0)] = 2.0
    """Seconds to measure regions."""
    drawn: Annotated[int | None, at_least(0), default_is("written ones", metavar="SEED")] = (
        None
    )
    """Judge schedules drawn at random."""
    out: Path = Path("results/cost_model")
    """Folder to write to."""

    def load_subject(self) -> Subject:
        """The model that options name."""
        batch = self.geometry.batch
        if self.model == "geometry":
            return Subject(str(self.geometry), self.geometry.build(), batch)
        model: Any = DiTTransformer2DModel.from_pretrained(  # type: ignore[no-untyped-call]
            REFERENCES[self.model] / "transformer"
        )
        return Subject(
            f"{self.model} pipeline, batch {batch}", model.requires_grad_(False), batch
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


@torch.no_grad()
def run(options: Options) -> None:
    """Predict, measure, print and write."""
    subject = options.load_subject()
    schedule = dqar_fx.Schedule.compute_all(options.steps)
    denoiser = dqar_fx.transform(
        subject.model, schedule, compile=LOWERING, example_inputs=subject.example_call()
    )
    print(subject.name)
    schedules = list_schedules(options.steps, len(denoiser.table.sites), options.drawn)
    by_name = count_rows(denoiser, schedules)
    set_up_compiler(CPU)
    report = run_rounds(subject, denoiser, schedules, by_name, options)
    rows, machine = list(by_name.values()), describe_machine(CPU)
    print(report, format_table(COLUMNS, rows), format_verdict(rows), sep="\n\n")
    path = options.out / "rows.jsonl"
    write_rows(rows, path, {"model": subject.name}, machine, also=("ratio",))
    print(machine, f"wrote {path}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
