"""Predicted against measured time of trajectories, on schedules that nothing was fitted to.

Everything is predicted first: operators are measured one by one, and nothing is compiled. Then
the denoiser is compiled regionally, and trajectories of all schedules are timed in turns. Only
the denoiser's calls count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from tabulate import tabulate
from torch import nn

import dqar_fx
from benchmarks.command_line import Parser, above, at_least, folder_to_write
from benchmarks.geometry import Geometry, add_geometry, draw_timesteps, read_geometry
from benchmarks.machine import can_compile, describe_machine, set_up_compiler
from benchmarks.reference import PIPELINE, SMALL

CPU = torch.device("cpu")
LOWERING: str | None = "regional"
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

    def trajectory(self, denoiser: nn.Module, num_steps: int) -> float:
        """Milliseconds of the calls of a trajectory, called as stock pipelines call."""
        labels, spent = torch.arange(self.shape[0]) % 10, 0.0
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
        reuse_ratio: Share of cells that compute nothing.
        predicted_ms: Of a trajectory.
        gmacs: Of a trajectory.
        ceiling: By MACs.
        cache_bytes: Of the slots.
        measured_ms: Of each repeat.
    """

    schedule: str
    reuse_ratio: float
    predicted_ms: float
    gmacs: float
    ceiling: float
    cache_bytes: int
    measured_ms: list[float]

    @property
    def median_ms(self) -> float:
        """Of what was measured."""
        return statistics.median(self.measured_ms)

    @property
    def ratio(self) -> float:
        """Predicted by measured."""
        return self.predicted_ms / self.median_ms


def make_schedules(num_steps: int, num_sites: int) -> dict[str, dqar_fx.Schedule]:
    """Computing all, and six others."""
    step, site = np.arange(num_steps)[:, None], np.arange(num_sites)[None, :]
    odd = (site % 2 == 1) & (step % 3 > 0)
    late = np.broadcast_to(step >= max(num_steps // 2, 1), odd.shape)
    return {
        "compute all": dqar_fx.Schedule.compute_all(num_steps),
        "linear": dqar_fx.Schedule.linear(num_steps, max(num_steps // 10, 1)),
        "every 2nd": dqar_fx.Schedule.interval(num_steps, 2),
        "every 3rd": dqar_fx.Schedule.interval(num_steps, 3),
        "every 5th, warm-up": dqar_fx.Schedule.interval(
            num_steps, 5, warmup=max(num_steps // 4, 1)
        ),
        "odd sites, every 3rd": dqar_fx.Schedule.from_actions(odd),
        "second half reused": dqar_fx.Schedule.from_actions(late),
    }


def predict(denoiser: dqar_fx.Denoiser, num_steps: int, budget_s: float) -> dict[str, Row]:
    """Rows without measurements."""
    table = denoiser.table
    schedules = make_schedules(num_steps, len(table.sites))
    profile = dqar_fx.measure_profile(
        denoiser, tuple(schedules.values()), device=CPU, budget_s=budget_s
    )
    reports = dqar_fx.compare(denoiser, schedules, device=profile)
    print(reports["every 3rd"], end="\n\n")
    return {
        name: Row(
            schedule=name,
            reuse_ratio=schedules[name].resolve(table.sites, table.around).reuse_ratio,
            predicted_ms=report.ms,
            gmacs=report.macs / 1e9,
            ceiling=report.ceiling,
            cache_bytes=report.cache_bytes,
            measured_ms=[],
        )
        for name, report in reports.items()
    }


def measure(
    subject: Subject,
    denoiser: dqar_fx.Denoiser,
    rows: Mapping[str, Row],
    num_steps: int,
    repeats: int,
) -> None:
    """Time all schedules in turns, after a trajectory each that compiles."""
    schedules = make_schedules(num_steps, len(denoiser.table.sites))
    twins = {name: denoiser.with_schedule(each) for name, each in schedules.items()}
    for twin in twins.values():
        subject.trajectory(twin, num_steps)
    names = list(rows)
    for number in range(repeats):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            rows[name].measured_ms.append(subject.trajectory(twins[name], num_steps))


def format_table(rows: Sequence[Row]) -> str:
    """One line per schedule."""
    headers = ("schedule", "reuse", "GMACs", "ceiling", "MB", "predicted ms", "measured ms")
    cells = [
        (
            row.schedule,
            f"{row.reuse_ratio:.3f}",
            f"{row.gmacs:.2f}",
            f"{row.ceiling:.2f}",
            f"{row.cache_bytes / 1e6:.2f}",
            f"{row.predicted_ms:.1f}",
            f"{row.median_ms:.1f} ({min(row.measured_ms):.1f}-{max(row.measured_ms):.1f})",
            f"{row.ratio:.3f}",
        )
        for row in rows
    ]
    return tabulate(
        cells, headers=(*headers, "ratio"), tablefmt="github", disable_numparse=True
    )


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
    add("--repeats", type=at_least(1), default=7, help="timed trajectories of each (7)")
    add("--budget", type=above(0), default=4.0, help="seconds to measure operators (4)")
    add("--out", type=folder_to_write, default="results/cost_model", help="folder")
    add_geometry(parser)
    return parser


def read_subject(parser: Parser, args: argparse.Namespace) -> Subject:
    """The model that options name; a shipped one is called with 16 samples."""
    geometry = read_geometry(parser, args)
    if args.model == "geometry":
        return of_geometry(geometry)
    return load_reference(args.model, batch=16)


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
    rows = predict(denoiser, args.steps, args.budget)
    print("compiling ...", file=sys.stderr)
    set_up_compiler(CPU)
    measure(subject, denoiser, rows, args.steps, args.repeats)
    print(format_table(list(rows.values())), describe_machine(CPU), sep="\n\n")
    write_rows(subject, list(rows.values()), args.out / "rows.jsonl")
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


def write_rows(subject: Subject, rows: Sequence[Row], path: Path) -> None:
    """Write one line of JSON per schedule."""
    shared = {"model": subject.name} | asdict(describe_machine(CPU))
    lines = (asdict(row) | {"ratio": row.ratio} | shared for row in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
