"""How the time of a transformation grows with layers and steps; nothing is compiled or run.

Narrow models on the meta device: what grows is the graph. Time of the processor, not of the
clock, phase by phase: whatever else runs on the machine is not counted.

Examples::

    python -m benchmarks.scale            # 14 to 112 layers, 50 to 1,000 steps
    python -m benchmarks.scale --quick    # does it run at all?
"""

import gc
import importlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

import dqar_fx
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.macs import to_meta_call
from benchmarks.harness.options import Command, Count, Counts, quick_flag, run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import make_table
from dqar_fx.plan.plan import bind, select_calls
from dqar_fx.program.program import Program

NARROW = Geometry(layers=2, width=16, heads=2, tokens=4, batch=2)
QUICK = {"layers": (2, 4), "steps": (8, 16), "repeats": 1}
LINEAR = 1.15
"""Highest exponent that is called linear: 8 times as much takes at most 11 times as long."""
COUNTS = ("nodes", "calls", "regions", "variants", "distinct_rows")
AXES = ("layers", "steps")
META = torch.device("meta")
BINDINGS = 5
"""Times that all rows are bound; the fastest counts, since each takes milliseconds."""
PHASES = {
    "capture": "torch.export",
    "match": "finding the sites",
    "passes": "all passes, with a check of the graph after each, and its forks",
    "table": "resolving the schedule and verifying the table",
    "plan": "reading the plan off the outlined graph",
    "transform": "all of these together",
    "specialise": "the distinct graphs of all rows, which would be compiled",
    "bind": "binding the plan to one distinct row once these are known, the mean of all",
}
TIMED = {
    "capture_best": "capture",
    "find_sites": "match",
    "find_around": "match",
    "run_passes": "passes",
    "fork": "passes",
    "make_plan": "plan",
}
"""Functions that a transformation calls, none from within another, and their phases."""


@dataclass(frozen=True)
class Growth:
    """What a transformation took and gave.

    Attributes:
        layers: Of the model.
        steps: Of the linear schedule.
        seconds: By phase, a key of `PHASES`.
        nodes: Of the captured graph.
        calls: Of the plan.
        regions: Distinct ones.
        distinct_rows: Of the branch table.
        variants: Distinct graphs that would be compiled for all rows.
    """

    layers: int
    steps: int
    seconds: dict[str, float]
    nodes: int
    calls: int
    regions: int
    distinct_rows: int
    variants: int


@torch.no_grad()
def measure(geometry: Geometry, steps: int) -> Growth:
    """Transform once, and bind every distinct row."""
    model = geometry.build().to(META)
    call = to_meta_call(next(geometry.draw_calls(1)))
    gc.collect()  # of what was measured before: not counted
    with timed_phases() as seconds:
        with adding_to(seconds, "transform"):
            denoiser = dqar_fx.transform(
                model, dqar_fx.Schedule.linear(steps), compile="regional", example_inputs=call
            )
        program = denoiser.program
        first_s = bind_rows(program)
        later_s = min(bind_rows(program) for _ in range(BINDINGS))
        seconds["specialise"] = first_s - later_s
        seconds["bind"] = later_s / len(program.table.rows)
    return Growth(
        layers=geometry.layers,
        steps=steps,
        seconds={phase: seconds[phase] for phase in PHASES},
        nodes=len(program.captured.gm.graph.nodes),
        calls=len(program.plan.calls),
        regions=len(program.plan.regions),
        distinct_rows=len(program.table.rows),
        variants=len(program.variants),
    )


def bind_rows(program: Program) -> float:
    """Time of binding the plan to each distinct row."""
    specialised = partial(program.lowering.variant, program.plan)
    start = time.process_time()
    for row in program.table.rows:
        bind(select_calls(program.plan, row, specialised), lambda static: static)
    return time.process_time() - start


@contextmanager
def timed_phases() -> Iterator[dict[str, float]]:
    """Add up the processor's time in each phase while inside."""
    seconds = dict.fromkeys(PHASES, 0.0)
    module = importlib.import_module("dqar_fx.builder.builder")
    functions = [(module, name, phase) for name, phase in TIMED.items()]
    with ExitStack() as stack:
        for owner, name, phase in (*functions, (dqar_fx.Schedule, "resolve", "table")):
            function = adding_to(seconds, phase)(getattr(owner, name))
            stack.enter_context(patch.object(owner, name, function))
        yield seconds


@contextmanager
def adding_to(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the processor's time to a phase: inside, or of a function that this decorates."""
    start = time.process_time()
    try:
        yield
    finally:
        seconds[phase] += time.process_time() - start


def fit_exponent(times: Mapping[int, float]) -> float:
    """The slope of a line through logarithms of size and time."""
    sizes, seconds = np.log(list(times)), np.log(list(times.values()))
    return float(np.polyfit(sizes, seconds, 1)[0])


def group_by_size(rows: Sequence[Growth], axis: str) -> dict[int, list[Growth]]:
    """Rows by layers or steps; of the other only its commonest value, so that one differs."""
    (other,) = set(AXES) - {axis}
    sizes: dict[int, set[int]] = {}
    for row in rows:
        sizes.setdefault(getattr(row, other), set()).add(getattr(row, axis))
    fixed = max(sizes, key=lambda value: len(sizes[value]))
    return {
        size: [r for r in rows if (getattr(r, axis), getattr(r, other)) == (size, fixed)]
        for size in sorted(sizes[fixed])
    }


def median_times(rows: Sequence[Growth], axis: str, phase: str) -> dict[int, float]:
    """By layers or steps, the median time of a phase; the other is as in most rows."""
    return {
        size: statistics.median(row.seconds[phase] for row in group)
        for size, group in group_by_size(rows, axis).items()
    }


def format_growth(rows: Sequence[Growth], axis: str) -> str:
    """Milliseconds of each phase by layers or steps, exponents, and counts."""
    groups, lines = group_by_size(rows, axis), []
    for phase in PHASES:
        times = median_times(rows, axis, phase)
        exponents = (fit_exponent(times), fit_exponent(dict(list(times.items())[-2:])))
        cells = [f"{1e3 * seconds:.1f}" for seconds in times.values()]
        lines.append([f"{phase} ms", *cells, *(f"{each:.2f}" for each in exponents)])
    for name in COUNTS:
        counts = [str(getattr(group[0], name)) for group in groups.values()]
        lines.append([name.replace("_", " "), *counts, "", ""])
    return make_table([axis, *map(str, groups), "exponent", "of the last two"], lines)


def format_verdict(rows: Sequence[Growth]) -> list[str]:
    """For layers and steps, whether no phase grows faster than linearly."""
    lines = []
    for axis in AXES:
        found = {phase: fit_exponent(median_times(rows, axis, phase)) for phase in PHASES}
        steepest = max(found, key=lambda phase: found[phase])
        largest = max(getattr(row, axis) for row in rows)
        said = "holds" if found[steepest] <= LINEAR else "does not hold"
        lines.append(
            f"linear in {axis} up to {largest:,}: steepest is {steepest}, exponent "
            f"{found[steepest]:.2f}, at most {LINEAR}: {said}"
        )
    return lines


def list_sizes(layers: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """Layers and steps: each number of one with the second or first of the other."""
    pairs = [(each, steps[0]) for each in layers] + [(layers[1], each) for each in steps]
    return list(dict.fromkeys(pairs))


def list_runs(
    layers: Sequence[int], steps: Sequence[int], repeats: int
) -> list[tuple[int, int]]:
    """All sizes in turn, as often as asked; of three or more layers the most once."""
    sizes, once = list_sizes(layers, steps), max(layers[2:], default=None)
    others = [size for size in sizes if size[0] != once]
    return sizes + others * (repeats - 1)


@dataclass(frozen=True)
class Options(Command):
    """Options of this command."""

    COMMAND = "benchmarks.scale"
    QUICK = QUICK

    layers: Counts = (14, 28, 56, 112)
    """At least two numbers of layers."""
    steps: Counts = (50, 100, 500, 1000)
    """At least two numbers of steps."""
    repeats: Count = 3
    """Of each, in turn, but one of the most layers, which take long."""
    out: Path = Path("results/scale")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    def settle(self) -> Self:
        """The same with each number once, from low to high."""
        sizes = {axis: tuple(sorted(set(getattr(self, axis)))) for axis in AXES}
        for axis, numbers in sizes.items():
            if len(numbers) < 2:
                raise InputError(f"--{axis} needs two different numbers, found {numbers[0]}")
        return replace(super().settle(), **sizes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write."""
    measure(NARROW, 2)  # what is done once in a process
    rows = []
    order = list_runs(options.layers, options.steps, options.repeats)
    with tqdm(order, desc="transform", unit="model") as bar:
        for layers, steps in bar:
            bar.set_postfix_str(f"{layers} layers, {steps} steps")
            rows.append(measure(replace(NARROW, layers=layers), steps))
    print(*(format_growth(rows, axis) for axis in AXES), sep="\n\n", end="\n\n")
    print(*format_verdict(rows), "", sep="\n")
    print("; ".join(f"{phase}: {meaning}" for phase, meaning in PHASES.items()))
    machine, path = describe_machine(torch.device("cpu")), options.out / "rows.jsonl"
    write_rows(rows, path, machine)
    print(machine, f"wrote {path}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
