"""What a step takes outside of its regions: steps of a model whose regions do nothing.

Regions are replaced by functions that return tensors made before. What is left is dispatch:
finding the step and its row, conditioning that is known already, the walk over bound calls,
and the wrapper around the denoiser. Two depths tell what a step takes from what a call takes.

A block that is captured alone and reused is called beside a bare addition of tensors of its
output's shape, which takes turns with it: that addition is all that it has to compute.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self
from unittest.mock import patch

import numpy as np
import torch
from torch import fx

import dqar_fx
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry, draw_timesteps
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import (
    Command,
    Count,
    Counts,
    as_compile,
    at_least,
    run_command,
)
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.timing import Spread, find_quartiles, time_steps
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.program.block_program import RunningBlocks
from dqar_fx.program.lowering import Lowering

CPU = torch.device("cpu")
DEPTHS = (2, 14, 28, 56)
WARMUP_STEPS = 4
LOWERINGS = ("eager", "regional")
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
        capture: What is captured: the whole ``"graph"``, or its ``"blocks"``.
        step_us: Per depth, the median step.
        per_call_us: Slope over the calls of a step.
        per_step_us: What is left without any call.
        calls: Per depth, the calls of a step that computes all.
    """

    schedule: str
    capture: str
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
def time_depth(
    schedule: dqar_fx.Schedule, depth: int, repeats: int, capture: str
) -> tuple[float, int]:
    """The median step in microseconds, and the calls of a step.

    Where blocks are captured, what is between them is the model's own and takes its time.
    """
    geometry = Geometry(layers=depth, width=16, heads=2, tokens=4)
    timesteps = draw_timesteps(schedule.num_steps)
    with empty_regions():
        denoiser = dqar_fx.transform(
            geometry.build(), schedule, compile="regional", capture=capture
        )
        trajectories = [
            list(time_steps(denoiser, geometry, timesteps)) for _ in range(1 + repeats)
        ]
    times = [1e6 * s for steps in trajectories[1:] for s in steps[WARMUP_STEPS:]]
    return statistics.median(times), len(denoiser.program.plan.calls)


def measure(
    name: str, steps: int, repeats: int, depths: Sequence[int], capture: str = "graph"
) -> Overhead:
    """A schedule at all depths."""
    schedule = SCHEDULES[name](steps)
    found = {depth: time_depth(schedule, depth, repeats, capture) for depth in depths}
    calls = {depth: count for depth, (_, count) in found.items()}
    step_us = {depth: us for depth, (us, _) in found.items()}
    slope, rest = np.polyfit(list(calls.values()), list(step_us.values()), 1)
    return Overhead(name, capture, step_us, float(slope), float(rest), calls)


@dataclass(frozen=True)
class ReusedBlock:
    """What the call of a reused block takes, captured alone, in microseconds.

    Attributes:
        geometry: The model, in words.
        compile: How it is lowered, ``"eager"`` or ``"regional"``.
        call_us: The call.
        add_us: A bare addition of two tensors of its output's shape.
        over_us: The difference of each pair of these.
        pairs: How many there were.
    """

    geometry: str
    compile: str
    call_us: Spread
    add_us: Spread
    over_us: Spread
    pairs: int


@contextmanager
def timed_blocks() -> Iterator[list[tuple[float, float]]]:
    """Append microseconds of each block's call, and of an addition in turn with it."""
    pairs: list[tuple[float, float]] = []
    run = RunningBlocks.call

    def call(running: RunningBlocks, path: str, own: Any, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        kept, found = torch.ones_like(hidden), list[Any]()
        times = [0.0, 0.0]
        kinds = [
            lambda: found.append(run(running, path, own, args, kwargs)),
            lambda: torch.add(hidden, kept),
        ]
        for kind in (0, 1) if len(pairs) % 2 else (1, 0):  # neither is always the first
            start = time.perf_counter()
            kinds[kind]()
            times[kind] = 1e6 * (time.perf_counter() - start)
        pairs.append((times[0], times[1]))
        return found[0]

    with patch.object(RunningBlocks, "call", call):
        yield pairs


@torch.no_grad()
def measure_reused(
    geometry: Geometry, compile_as: str, steps: int, repeats: int
) -> ReusedBlock:
    """Calls of blocks in steps that reuse all of them."""
    schedule, timesteps = dqar_fx.Schedule.interval(steps, steps), draw_timesteps(steps)
    denoiser = dqar_fx.transform(
        geometry.build(),
        schedule,
        sites="block",
        compile=as_compile(compile_as),
        capture="blocks",
    )
    list(time_steps(denoiser, geometry, timesteps))  # which compiles
    reusing = []
    for _ in range(repeats):
        with timed_blocks() as pairs:
            list(time_steps(denoiser, geometry, timesteps))
        reusing += pairs[WARMUP_STEPS * geometry.layers :]  # the first step computes
    calls, adds = zip(*reusing, strict=True)
    over = [call - add for call, add in reusing]
    found = map(find_quartiles, (calls, adds, over))
    return ReusedBlock(str(geometry), compile_as, *found, pairs=len(reusing))


REUSED_COLUMNS = [
    Column("reused block", "geometry"),
    Column("compile", "compile"),
    Column("call, us", lambda row: row.call_us.show(".1f")),
    Column("addition, us", lambda row: row.add_us.show(".1f")),
    Column("over it, us", lambda row: row.over_us.show(".1f")),
    Column("pairs", "pairs"),
]


def list_columns(depths: Sequence[int]) -> list[Column]:
    """The columns of the table, which has a line per schedule and tier."""
    return [
        Column("schedule", "schedule"),
        Column("capture", "capture"),
        *(
            Column(f"{depth} layers, us", lambda row, depth=depth: row.step_us[depth], ".1f")
            for depth in depths
        ),
        Column("us per call", "per_call_us", ".1f"),
        Column("us per step", "per_step_us", ".1f"),
    ]


@dataclass(frozen=True)
class Options(Command):
    """Options of this command."""

    COMMAND = "benchmarks.overhead"

    steps: Annotated[int, at_least(WARMUP_STEPS + 1)] = 50
    """Of a trajectory."""
    repeats: Count = 20
    """Trajectories of each."""
    depths: Counts = DEPTHS
    """Layers."""
    tokens: Count = 1024
    """Of a reused block, a square number."""
    width: Count = 1152
    """Of a reused block, beside one of 16; a multiple of 16."""
    out: Path = Path("results/overhead")
    """Folder to write to."""

    def settle(self) -> Self:
        """The same with each depth once, from low to high."""
        depths = tuple(sorted(set(self.depths)))
        if len(depths) < 2:
            raise InputError(f"--depths needs two different ones, found {self.depths}")
        return replace(super().settle(), depths=depths)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write."""
    depths, machine = options.depths, describe_machine(CPU)
    rows = [
        measure(name, options.steps, options.repeats, depths, capture)
        for name in SCHEDULES
        for capture in ("graph", "blocks")
    ]
    sizes = [
        Geometry(layers=2, width=16, heads=2, tokens=4),
        Geometry(layers=2, width=options.width, heads=16, tokens=options.tokens),
    ]
    reused = [
        measure_reused(size, compile_as, options.steps, options.repeats)
        for size in sizes
        for compile_as in LOWERINGS
    ]
    print(format_table(list_columns(depths), rows), sep="\n\n", end="\n\n")
    print(format_table(REUSED_COLUMNS, reused), machine, sep="\n\n")
    for name, found in (("rows", rows), ("reused", reused)):
        path = options.out / f"{name}.jsonl"
        write_rows(found, path, machine)
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
