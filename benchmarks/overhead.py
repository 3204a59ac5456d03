"""What a step takes outside of its regions: steps of a model whose regions do nothing.

Regions are replaced by functions that return tensors made before. What is left is dispatch:
finding the step and its row, conditioning that is known already, the walk over bound calls,
and the face of the denoiser. Two depths tell what a step takes from what a call takes.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tabulate import tabulate
from torch import fx

import dqar_fx
from benchmarks.command_line import Parser, at_least, folder_to_write
from benchmarks.harness.geometry import Geometry, draw_timesteps
from benchmarks.harness.machine import describe_machine
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.program.lowering import Lowering

CPU = torch.device("cpu")
DEPTHS = (2, 14, 28, 56)
WARMUP_STEPS = 4
SCHEDULES = {
    "all computed": lambda steps: dqar_fx.Schedule.compute_all(steps),
    "attention, every 2nd step": lambda steps: dqar_fx.Schedule.interval(steps, 2),
    "linear": lambda steps: dqar_fx.Schedule.linear(steps),
    "forecast order 2, every 3rd": lambda steps: dqar_fx.Schedule.interval(steps, 3).forecast(
        2
    ),
}


@dataclass(frozen=True)
class Overhead:
    """What a schedule's steps take without their regions, in microseconds.

    Attributes:
        schedule: A key of `SCHEDULES`.
        step_us: Per depth, the median step.
        per_call_us: Slope over the calls of a step.
        per_step_us: What is left without any call.
        calls: Per depth, the calls of a step that computes all.
    """

    schedule: str
    step_us: dict[int, float]
    per_call_us: float
    per_step_us: float
    calls: dict[int, int]


def return_nothing_new(_: Lowering, gm: fx.GraphModule) -> Callable[..., Sequence[Any]]:
    """In the place of a lowered region: the same tensors at each call."""
    values = (node.meta["val"] for node in graph_outputs(gm.graph))
    made = tuple(torch.zeros(value.shape, dtype=value.dtype) for value in values)
    return lambda *_: made


@contextmanager
def empty_regions() -> Iterator[None]:
    """While inside, what is lowered does nothing."""
    with patch.object(Lowering, "lower", return_nothing_new):
        yield


@torch.no_grad()
def time_steps(schedule: dqar_fx.Schedule, depth: int, repeats: int) -> tuple[float, int]:
    """The median step in microseconds, and the calls of a step."""
    geometry = Geometry(layers=depth, width=16, heads=2, tokens=4)
    with empty_regions():
        denoiser = dqar_fx.transform(geometry.build(), schedule, compile="regional")
        run_trajectory(denoiser, geometry, schedule.num_steps)
        times = [
            us
            for _ in range(repeats)
            for us in run_trajectory(denoiser, geometry, schedule.num_steps)[WARMUP_STEPS:]
        ]
    return statistics.median(times), len(denoiser.program.plan.calls)


def run_trajectory(denoiser: dqar_fx.Denoiser, geometry: Geometry, steps: int) -> list[float]:
    """Microseconds of each step, called as stock pipelines call."""
    latent, labels, times = geometry.draw_latent(), geometry.labels(), []
    timesteps = draw_timesteps(steps)
    for timestep in timesteps:
        call = {"timestep": timestep.expand(geometry.batch), "class_labels": labels}
        start = time.perf_counter()
        denoiser(latent, **call)
        times.append(1e6 * (time.perf_counter() - start))
    return times


def measure(name: str, steps: int, repeats: int, depths: Sequence[int]) -> Overhead:
    """A schedule at all depths."""
    schedule = SCHEDULES[name](steps)
    found = {depth: time_steps(schedule, depth, repeats) for depth in depths}
    calls = {depth: count for depth, (_, count) in found.items()}
    step_us = {depth: us for depth, (us, _) in found.items()}
    slope, rest = np.polyfit(list(calls.values()), list(step_us.values()), 1)
    return Overhead(name, step_us, float(slope), float(rest), calls)


def format_table(rows: Sequence[Overhead]) -> str:
    """One line per schedule."""
    depths = list(rows[0].step_us)
    headers = [
        "schedule",
        *(f"{depth} layers, us" for depth in depths),
        "us per call",
        "us per step",
    ]
    cells = [
        [row.schedule, *row.step_us.values(), row.per_call_us, row.per_step_us] for row in rows
    ]
    return tabulate(cells, headers, floatfmt=".1f")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = Parser(prog="python -m benchmarks.overhead", description=__doc__)
    add = parser.add_argument
    add("--steps", type=at_least(WARMUP_STEPS + 1), default=50, help="of a trajectory (50)")
    add("--repeats", type=at_least(1), default=20, help="trajectories of each (20)")
    add("--depths", type=at_least(1), nargs="+", default=list(DEPTHS), help="layers")
    add("--out", type=folder_to_write, default="results/overhead", help="folder")
    args = parser.parse_args(argv)
    depths = sorted(set(args.depths))
    if len(depths) < 2:
        parser.error(f"--depths needs two different ones, found {args.depths}")
    rows = [measure(name, args.steps, args.repeats, depths) for name in SCHEDULES]
    print(format_table(rows), describe_machine(CPU), sep="\n\n")
    write_rows(rows, args.out / "rows.jsonl")
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


def write_rows(rows: Sequence[Overhead], path: Path) -> None:
    """Write one line of JSON per schedule."""
    shared = asdict(describe_machine(CPU))
    path.write_text("".join(json.dumps(asdict(row) | shared) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
