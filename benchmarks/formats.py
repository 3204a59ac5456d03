"""Steps that store and steps that reuse, for every cache format, against fp16.

A DiT with random weights computes and stores at every second step and reuses at the others.
All formats take each step in turn, in rotating order, compiled by region; a ratio is of times
of one step. Beside it: bytes of the slots, graphs, and the error of the steps that reuse.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.command_line import (
    Parser,
    add_geometry,
    at_least,
    folder_to_write,
    read_geometry,
)
from benchmarks.harness.geometry import Geometry, draw_timesteps
from benchmarks.harness.machine import can_compile, describe_machine, set_up_compiler
from benchmarks.harness.timing import Compiled
from dqar_fx.passes import FORMATS

CPU = torch.device("cpu")
BASE = "fp16"
WARMUP_PAIRS = 2
"""Steps of each kind that are not timed: the first ones compile."""
HEADERS = (
    "cache",
    "slot MB",
    f"of {BASE}",
    "graphs",
    "store ms",
    f"of {BASE} (quartiles)",
    "reuse ms",
    f"of {BASE} (quartiles)",
    "relative error",
)


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
    cache_bytes: int
    graphs: int
    breaks: int
    recompiles: int
    store_s: list[float]
    reuse_s: list[float]
    relative_error: float


@torch.no_grad()
def measure(model: nn.Module, geometry: Geometry, keep: str, num_pairs: int) -> list[Measured]:
    """All formats, step by step in rotating order."""
    num_steps = 2 * (WARMUP_PAIRS + num_pairs)
    schedule = dqar_fx.Schedule.from_actions("SR" * (num_steps // 2))
    denoisers = {
        name: dqar_fx.transform(model, schedule, keep=keep, cache=name, compile="regional")
        for name in FORMATS
    }
    found = {name: Measured(name, keep, 0, 0, 0, 0, [], [], 0.0) for name in FORMATS}
    labels = geometry.labels()
    for step, timestep in enumerate(tqdm(draw_timesteps(num_steps), desc=f"keep {keep}")):
        latent, first = geometry.draw_latent(), step % len(FORMATS)
        samples = {}
        for name in [*list(FORMATS)[first:], *list(FORMATS)[:first]]:
            before, start = Compiled.so_far(), time.perf_counter()
            samples[name] = denoisers[name](
                latent, timestep=timestep.expand(geometry.batch), class_labels=labels
            ).sample
            seconds = time.perf_counter() - start
            note(found[name], step, seconds, Compiled.so_far() - before)
        for name, sample in samples.items():
            error = ((sample - samples["same"]).norm() / samples["same"].norm()).item()
            found[name].relative_error = max(found[name].relative_error, error)
    for name, denoiser in denoisers.items():
        found[name].cache_bytes = denoiser.cache_bytes
    return list(found.values())


def note(measured: Measured, step: int, seconds: float, compiled: Compiled) -> None:
    """Write one step down."""
    measured.breaks += compiled.breaks
    measured.graphs += compiled.graphs
    if step < 2 * WARMUP_PAIRS:
        return
    measured.recompiles += compiled.graphs
    (measured.reuse_s if step % 2 else measured.store_s).append(seconds)


def format_table(rows: Sequence[Measured]) -> str:
    """The table of one kind, against `BASE`."""
    base = next(row for row in rows if row.cache == BASE)
    lines = [
        (
            row.cache,
            f"{row.cache_bytes / 1e6:.2f}",
            f"{row.cache_bytes / base.cache_bytes:.3f}",
            row.graphs,
            f"{1e3 * statistics.median(row.store_s):.2f}",
            show_ratio(row.store_s, base.store_s),
            f"{1e3 * statistics.median(row.reuse_s):.2f}",
            show_ratio(row.reuse_s, base.reuse_s),
            f"{row.relative_error:.1e}",
        )
        for row in rows
    ]
    return tabulate(lines, headers=HEADERS, tablefmt="github", disable_numparse=True)


def show_ratio(times: Sequence[float], base: Sequence[float]) -> str:
    """Median and quartiles of the ratios of paired times."""
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"{median:.3f} ({low:.3f}-{high:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = Parser(prog="python -m benchmarks.formats", description=__doc__)
    add = parser.add_argument
    add("--pairs", type=at_least(2), default=60, help="timed steps of each kind (60)")
    add("--keep", choices=("output", "kv"), nargs="+", default=["output", "kv"])
    add("--out", type=folder_to_write, default="results/formats", help="folder")
    add_geometry(parser)
    args = parser.parse_args(argv)
    geometry = read_geometry(parser, args)
    if not can_compile(CPU):
        parser.error("no C++ compiler was found, and this compares compiled steps")
    set_up_compiler(CPU)
    model, machine = geometry.build(), describe_machine(CPU)
    rows = []
    for keep in args.keep:
        rows += (measured := measure(model, geometry, keep, args.pairs))
        print(f"keep={keep!r}, {geometry}", format_table(measured), sep="\n\n", end="\n\n")
    broken = sum(row.breaks + row.recompiles for row in rows)
    print(f"{broken} graph breaks and recompiles. {machine}")
    lines = (json.dumps(asdict(row) | asdict(geometry) | asdict(machine)) for row in rows)
    (args.out / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
