"""Steps that store and steps that reuse, for every cache format, against fp16.

A DiT with random weights computes and stores at every second step and reuses at the others.
All formats take each step in turn, in rotating order, compiled by region; a ratio is of times
of one step. Beside it: bytes of the slots, graphs, and the error of the steps that reuse.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.harness.geometry import Geometry, GeometryOptions
from benchmarks.harness.machine import describe_machine, set_up_compiler
from benchmarks.harness.options import at_least, one_of, run_command, several
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table, show_megabytes
from benchmarks.harness.timing import Compiled, find_quartiles, rotate, take_ratios
from dqar_fx.passes import FORMATS

CPU = torch.device("cpu")
BASE = "fp16"
WARMUP_PAIRS = 2
"""Steps of each kind that are not timed: the first ones compile."""


@dataclass
class Measured:
    """What was measured of one format.

    Attributes:
        cache: The format.
        keep: What is kept.
        cache_bytes: Of the slots.
        graphs: Compiled for it.
        breaks: Graph breaks.
        recompiles: Graphs compiled once both kinds of step had run.
        store_s: Times of steps that store.
        reuse_s: Times of steps that reuse.
        relative_error: Largest over steps that reuse: norm of the difference from the
            unquantised cache's output by the norm of that.
    """

    cache: str
    keep: str
    cache_bytes: int = 0
    graphs: int = 0
    breaks: int = 0
    recompiles: int = 0
    store_s: list[float] = field(default_factory=list)
    reuse_s: list[float] = field(default_factory=list)
    relative_error: float = 0.0

    def note(self, step: int, seconds: float, compiled: Compiled) -> None:
        """Write one step down."""
        self.breaks += compiled.breaks
        self.graphs += compiled.graphs
        if step < 2 * WARMUP_PAIRS:
            return
        self.recompiles += compiled.graphs
        (self.reuse_s if step % 2 else self.store_s).append(seconds)


@torch.no_grad()
def measure(model: nn.Module, geometry: Geometry, keep: str, num_pairs: int) -> list[Measured]:
    """All formats, step by step in rotating order."""
    num_steps = 2 * (WARMUP_PAIRS + num_pairs)
    schedule = dqar_fx.Schedule.from_actions("SR" * (num_steps // 2))
    denoisers = {
        name: dqar_fx.transform(model, schedule, keep=keep, cache=name, compile="regional")
        for name in FORMATS
    }
    found = {name: Measured(name, keep) for name in FORMATS}
    calls = tqdm(geometry.draw_calls(num_steps), total=num_steps, desc=f"keep {keep}")
    for step, call in enumerate(calls):
        samples = {}
        for name in rotate(list(FORMATS), step):
            before, start = Compiled.so_far(), time.perf_counter()
            samples[name] = denoisers[name](**call).sample
            seconds = time.perf_counter() - start
            found[name].note(step, seconds, Compiled.so_far() - before)
        for name, sample in samples.items():
            error = ((sample - samples["same"]).norm() / samples["same"].norm()).item()
            found[name].relative_error = max(found[name].relative_error, error)
    for name, denoiser in denoisers.items():
        found[name].cache_bytes = denoiser.cache_bytes
    return list(found.values())


def list_columns(base: Measured) -> tuple[Column, ...]:
    """The columns of a table, with ratios to one of its rows."""

    def show_ratio(own_s: Sequence[float], base_s: Sequence[float]) -> str:
        return f"{find_quartiles(take_ratios(own_s, base_s), 'exclusive'):.3f}"

    def show_median(times: Sequence[float]) -> str:
        return f"{1e3 * statistics.median(times):.2f}"

    of_base = f"of {BASE} (quartiles)"
    return (
        Column("cache", "cache"),
        Column("slot MB", "cache_bytes", show_megabytes()),
        Column(f"of {BASE}", lambda row: row.cache_bytes / base.cache_bytes, ".3f"),
        Column("graphs", "graphs"),
        Column("store ms", "store_s", show_median),
        Column(of_base, lambda row: show_ratio(row.store_s, base.store_s)),
        Column("reuse ms", "reuse_s", show_median),
        Column(of_base, lambda row: show_ratio(row.reuse_s, base.reuse_s)),
        Column("relative error", "relative_error", ".1e"),
    )


@dataclass(frozen=True)
class Options(GeometryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.formats"
    WHY_COMPILER = "this compares compiled steps"

    pairs: Annotated[int, at_least(2)] = 60
    """Timed steps of each kind."""
    keep: Annotated[tuple[str, ...], several(one_of(("output", "kv")))] = ("output", "kv")
    """What is kept."""
    out: Path = Path("results/formats")
    """Folder to write to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write."""
    set_up_compiler(CPU)
    geometry, path = options.geometry, options.out / "rows.jsonl"
    model, machine = geometry.build(), describe_machine(CPU)
    rows = []
    for keep in options.keep:
        rows += (measured := measure(model, geometry, keep, options.pairs))
        base = next(row for row in measured if row.cache == BASE)
        table = format_table(list_columns(base), measured)
        print(f"keep={keep!r}, {geometry}", table, sep="\n\n", end="\n\n")
    broken = sum(row.breaks + row.recompiles for row in rows)
    print(f"{broken} graph breaks and recompiles. {machine}")
    write_rows(rows, path, geometry, machine)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
