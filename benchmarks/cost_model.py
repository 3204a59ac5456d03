"""Predicted against measured time of trajectories, on schedules that nothing was fitted to.

::

    python -m benchmarks.cost_model                     # reference pipeline, batch 2
    python -m benchmarks.cost_model --batch 16
    python -m benchmarks.cost_model --model geometry --steps 8 --repeats 1    # DiT-S/2
    python -m benchmarks.cost_model --drawn 1           # six schedules drawn at random

In each of some rounds, each distinct region is timed in a few made-up steps, then operators
one by one; then trajectories of all schedules in turns, so that predictions and trajectories
see the same machine. Nothing is fitted to trajectories, and schedules whose steps have all
sites alike, which are easiest, are not judged. Each trajectory has a prompt that the one
before it had not, so that it evaluates conditioning. Only the denoiser's calls count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from numpy.typing import NDArray
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.command_line import (
    Parser,
    above,
    add_geometry,
    at_least,
    folder_to_write,
    read_geometry,
)
from benchmarks.harness.geometry import Geometry, draw_timesteps
from benchmarks.harness.machine import can_compile, describe_machine, set_up_compiler
from benchmarks.reference import PIPELINE, SMALL

CPU = torch.device("cpu")
LOWERING: str | None = "regional"
BAR = 0.1
NUM_DRAWN = 6
REFERENCES = {"reference": PIPELINE, "small": SMALL}


@dataclass(frozen=True)
class Subject:
    """A model and the calls of its trajectories.

    Attributes:
        name: What it is.
        model: The model.
        shape: Of its latent.
    """

    name: str
    model: nn.Module
    shape: tuple[int, ...]

    def trajectory(self, denoiser: nn.Module, num_steps: int, prompt: int) -> float:
        """Milliseconds of the calls of a trajectory, called as stock pipelines call."""
        labels, spent = (torch.arange(self.shape[0]) + prompt) % 10, 0.0
        for timestep in draw_timesteps(num_steps):
            latent = torch.randn(self.shape)
            call = {"timestep": timestep.expand(self.shape[0]), "class_labels": labels}
            start = time.perf_counter()
            denoiser(latent, **call)
            spent += time.perf_counter() - start
        return 1e3 * spent

    def example(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of one call."""
        batch = self.shape[0]
        timestep = draw_timesteps(2)[0].expand(batch)
        labels = torch.arange(batch) % 10
        return {
            "hidden_states": torch.zeros(self.shape),
            "timestep": timestep,
            "class_labels": labels,
        }


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
        f"drawn, {share:.0%} of all": written(
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
        "odd sites, every 3rd": written((site % 2 == 1) & (step % 3 > 0)),
        "first half of sites, every 2nd": written((2 * site < num_sites) & (step % 2 > 0)),
        "every 2nd to 4th by site": written(step % (2 + site % 3) > 0),
        "drawn, half of all": written(drawn & (step > 0)),
    }


def written(reused: NDArray[np.bool_]) -> dqar_fx.Schedule:
    """The schedule that reuses where an array of steps and sites says so."""
    return dqar_fx.Schedule.from_actions(reused)


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
    args: argparse.Namespace,
) -> dqar_fx.Report:
    """Predict and measure in turns; the last report of the last schedule."""
    twins = {name: denoiser.with_schedule(each) for name, each in schedules.items()}
    prompts = count(1)
    for number in tqdm(range(args.rounds), desc="measure", unit="round"):
        profile = dqar_fx.measure_profile(
            denoiser, tuple(schedules.values()), by="regions", budget_s=args.budget
        )
        reports = dqar_fx.compare(denoiser, schedules, device=profile)
        by_operators = dqar_fx.compare(
            denoiser, schedules, device=replace(profile, region_s={})
        )
        if not number:
            for twin in twins.values():
                subject.trajectory(twin, args.steps, prompt=0)
        for name, row in rows.items():
            row.regions_ms.append(reports[name].ms)
            row.operators_ms.append(by_operators[name].ms)
            row.measured_ms.append([])
        for prompt in islice(prompts, args.repeats):
            for name, row in rows.items():
                ms = subject.trajectory(twins[name], args.steps, prompt)
                row.measured_ms[-1].append(ms)
    for name, row in rows.items():
        streams = twins[name].program.streams.values()
        row.allocated_bytes = sum(stream.slots.nbytes for stream in streams)
    return reports[next(reversed(rows))]


def format_table(rows: Sequence[Row]) -> str:
    """One line per schedule."""
    headers = ("schedule", "judged", "reuse", "ceiling", "slot bytes", "allocated")
    headers += ("predicted ms", "measured ms", "ratio (rounds)", "ratio by operators (rounds)")
    cells = [
        (
            row.schedule,
            "yes" if row.is_judged else "",
            f"{row.reuse_ratio:.3f}",
            f"{row.ceiling:.2f}",
            f"{row.cache_bytes:,}",
            f"{row.allocated_bytes:,}",
            f"{statistics.median(row.regions_ms):.1f}",
            format_spread(row.all_ms, 1),
            format_spread(row.ratios(row.regions_ms), 3),
            format_spread(row.ratios(row.operators_ms), 3),
        )
        for row in rows
    ]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def format_spread(values: Sequence[float], digits: int) -> str:
    """The median, the lowest and the highest."""
    found = (statistics.median(values), min(values), max(values))
    median, low, high = (f"{value:.{digits}f}" for value in found)
    return f"{median} ({low}-{high})"


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


def load_reference(name: str, batch: int) -> Subject:
    """The denoiser of a shipped pipeline."""
    model: Any = DiTTransformer2DModel.from_pretrained(  # type: ignore[no-untyped-call]
        REFERENCES[name] / "transformer"
    )
    config = model.config
    shape = (batch, config.in_channels, config.sample_size, config.sample_size)
    return Subject(f"{name} pipeline, batch {batch}", model.requires_grad_(False), shape)


def of_geometry(geometry: Geometry) -> Subject:
    """A denoiser with random weights."""
    return Subject(str(geometry), geometry.build(), tuple(geometry.draw_latent().shape))


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(prog="python -m benchmarks.cost_model", description=__doc__)
    add = parser.add_argument
    add("--model", choices=("geometry", *REFERENCES), default="reference", help="(reference)")
    add("--steps", type=at_least(4), default=20, help="of a trajectory (20)")
    add("--rounds", type=at_least(1), default=3, help="of predictions and measurements (3)")
    add("--repeats", type=at_least(1), default=2, help="trajectories of each per round (2)")
    add("--budget", type=above(0), default=2.0, help="seconds to measure regions (2)")
    add("--drawn", type=at_least(0), metavar="SEED", help="judge schedules drawn at random")
    add("--out", type=folder_to_write, default="results/cost_model", help="folder")
    add_geometry(parser)
    return parser


def read_subject(parser: Parser, args: argparse.Namespace) -> Subject:
    """The model that options name."""
    geometry = read_geometry(parser, args)
    if args.model == "geometry":
        return of_geometry(geometry)
    return load_reference(args.model, batch=geometry.batch)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    subject = read_subject(parser, args)
    if not can_compile(CPU):
        parser.error("no C++ compiler was found, and this times compiled trajectories")
    schedule = dqar_fx.Schedule.compute_all(args.steps)
    denoiser = dqar_fx.transform(
        subject.model, schedule, compile=LOWERING, example_inputs=subject.example()
    )
    print(subject.name)
    schedules = list_schedules(args.steps, len(denoiser.table.sites), args.drawn)
    rows = count_rows(denoiser, schedules)
    set_up_compiler(CPU)
    report = run_rounds(subject, denoiser, schedules, rows, args)
    found = list(rows.values())
    print(report, format_table(found), format_verdict(found), sep="\n\n")
    print(describe_machine(CPU))
    write_rows(subject, found, args.out / "rows.jsonl")
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


def write_rows(subject: Subject, rows: Sequence[Row], path: Path) -> None:
    """Write one line of JSON per schedule."""
    shared = {"model": subject.name} | asdict(describe_machine(CPU))
    lines = (asdict(row) | {"ratio": row.ratio} | shared for row in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
