"""Group offload of diffusers with a denoiser and without one: time, and weights held at once.

One model, whose groups of blocks come and go by diffusers' own hooks, is called natively and
through denoisers of its captured blocks, which take turns, trajectory by trajectory. Weights
come from memory, where on a CPU nothing moves and hooks alone cost time; or from files. Hooks
around a block run whether it is reused or not, so that its weights come in all the same.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers.hooks import apply_group_offloading, group_offloading

import dqar_fx
from benchmarks.dynamic_regions import Subject, make_flux
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import Command, Count, at_least, run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table, show_megabytes
from benchmarks.harness.timing import find_quartiles, rotate, take_ratios
from dqar_fx import Denoiser, Schedule

PLACES = ("memory", "files")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One way to call an offloaded model.

    Attributes:
        place: Where weights are that are away.
        name: Who calls the blocks.
        step_ms: A step of the median trajectory.
        speed: Time of the native trajectory by its own, median of pairs.
        speed_low: Lower quartile.
        speed_high: Upper quartile.
        peak_bytes: Most parameter bytes that were there at once.
        brought_bytes: Parameter bytes that came in within a trajectory.
        max_error: Largest difference of an output from the native one, over a trajectory.
        pairs: How many trajectories were paired.
    """

    place: str
    name: str
    step_ms: float
    speed: float
    speed_low: float
    speed_high: float
    peak_bytes: int
    brought_bytes: int
    max_error: float
    pairs: int


@dataclass
class Counts:
    """Parameter bytes that groups bring in.

    Attributes:
        held: There at the moment.
        peak: The most of it.
        brought: All that came in.
    """

    held: int = 0
    peak: int = 0
    brought: int = 0


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what all groups bring in and take away."""
    counts, kind = Counts(), group_offloading.ModuleGroup
    originals = kind.onload_, kind.offload_
    there: set[int] = set()

    def bring(group: Any) -> None:
        originals[0](group)
        if id(group) not in there:
            there.add(id(group))
            counts.held += count_bytes(group)
            counts.brought += count_bytes(group)
            counts.peak = max(counts.peak, counts.held)

    def take(group: Any) -> None:
        originals[1](group)
        if id(group) in there:
            there.discard(id(group))
            counts.held -= count_bytes(group)

    kind.onload_, kind.offload_ = bring, take
    try:
        yield counts
    finally:
        kind.onload_, kind.offload_ = originals


def count_bytes(group: Any) -> int:
    """Bytes of a group's parameters."""
    inner = [each for module in group.modules for each in module.parameters()]
    held = {id(each): each for each in (*inner, *group.parameters)}
    return sum(each.nbytes for each in held.values())


def run_trajectory(
    model: Callable[..., Any], subject: Subject, steps: int
) -> tuple[float, torch.Tensor]:
    """Seconds of all steps, and their outputs."""
    if isinstance(model, Denoiser):
        model.reset()
    times = [torch.full((2,), 0.9 - 0.8 * step / steps) for step in range(steps)]
    start = time.perf_counter()
    outputs = [model(timestep=each, **subject.inputs).sample for each in times]
    return time.perf_counter() - start, torch.stack(outputs)


@torch.no_grad()
def compare(place: str, layers: int, tokens: int, steps: int, repeats: int) -> list[Row]:
    """All ways to call one model whose weights are away in one place."""
    subject = make_flux(layers, tokens)
    with tempfile.TemporaryDirectory() as folder:
        way: dict[str, Any] = {"offload_type": "block_level", "num_blocks_per_group": 1}
        if place == "files":
            way["offload_to_disk_path"] = folder
        apply_group_offloading(subject.model, CPU, CPU, **way)
        models: dict[str, Callable[..., Any]] = {
            "diffusers alone": subject.model,
            "all computed": make_denoiser(subject, Schedule.compute_all(steps)),
            "every 2nd": make_denoiser(subject, Schedule.interval(steps, 2)),
        }
        counts, outputs = {}, {}
        for name, model in models.items():
            run_trajectory(model, subject, steps)  # captures
            with counting() as counts[name]:
                outputs[name] = run_trajectory(model, subject, steps)[1]
        times: dict[str, list[float]] = {name: [] for name in models}
        for number in range(repeats):
            for name in rotate(list(models), number):
                times[name].append(run_trajectory(models[name], subject, steps)[0])
    native = next(iter(models))
    rows = []
    for name, own in times.items():
        speed = find_quartiles(take_ratios(times[native], own))
        error = float((outputs[name] - outputs[native]).abs().max())
        step_ms = 1e3 * find_quartiles(own).median / steps
        held, brought = counts[name].peak, counts[name].brought
        spread = speed.median, speed.low, speed.high
        rows.append(Row(place, name, step_ms, *spread, held, brought, error, repeats))
    return rows


def make_denoiser(subject: Subject, schedule: Schedule) -> Denoiser:
    """A denoiser of captured blocks, in eager mode as the native model is."""
    return dqar_fx.transform(subject.model, schedule, sites="block", capture="blocks")


COLUMNS = [
    Column("weights away in", "place"),
    Column("called by", "name"),
    Column("step, ms", "step_ms", ".2f"),
    Column("speed", "speed", ".3f"),
    Column("lower quartile", "speed_low", ".3f"),
    Column("upper quartile", "speed_high", ".3f"),
    Column("at once, MB", "peak_bytes", show_megabytes(".1f")),
    Column("brought in, MB", "brought_bytes", show_megabytes(".1f")),
    Column("largest difference", "max_error", ".1e"),
    Column("pairs", "pairs"),
]


@dataclass(frozen=True)
class Options(Command):
    """Options of this command."""

    COMMAND = "benchmarks.offload"

    steps: Annotated[int, at_least(2)] = 10
    """Of a trajectory."""
    repeats: Count = 10
    """Timed trajectories of each."""
    layers: Annotated[int, at_least(2)] = 8
    """Blocks of a Flux of width 768."""
    tokens: Count = 64
    """Patches of a picture, a square number."""
    out: Path = Path("results/offload")
    """Folder to write to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write."""
    machine = describe_machine(CPU)
    sizes = options.layers, options.tokens, options.steps, options.repeats
    rows = [row for place in PLACES for row in compare(place, *sizes)]
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    path = options.out / "rows.jsonl"
    write_rows(rows, path, machine)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
