"""Many sizes of one model in turn: captures, graphs, values and memory.

Each small model is called, two steps a size, at all combinations of batch, picture and length
of text, in an order that is drawn. Then some of these sizes come again and again, with
recompiling forbidden. Outputs are compared with the untouched model's under plain hooks.

Examples::

    python -m benchmarks.sizes                             # five models: half an hour
    python -m benchmarks.sizes --only flux --lengths 3     # some of them
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from tqdm import tqdm

import dqar_fx
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.memory import Memory
from benchmarks.harness.options import Count, run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.sized_models import SIZED, Sized
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.verdicts import TryOptions
from benchmarks.zoo.oracle import Oracle
from dqar_fx.builder import tiers

BATCHES, PICTURES, SHORTEST = (2, 3, 8, 1), ((4, 6), (6, 6), (5, 7)), 5
STEPS = 2
Size = tuple[int, int, int, int]
"""Samples, height and width in tokens, length of the text."""


@dataclass(frozen=True)
class Row:
    """What the sizes of one model took.

    Attributes:
        model: Its name.
        sizes: How many sizes.
        captures: How often the model was captured.
        graphs: Graphs that were compiled at the first round.
        graphs_again: Those that were at later ones.
        worst: Largest difference of an output from the untouched model's under hooks.
        mib: Resident memory after the first round.
        mib_after: The same after the last.
        calls: Calls of the denoiser.
    """

    model: str
    sizes: int
    captures: int
    graphs: int
    graphs_again: int
    worst: float
    mib: float
    mib_after: float
    calls: int


@dataclass(frozen=True)
class Options(TryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.sizes"

    lengths: Count = 12
    """Lengths of the text."""
    again: Count = 50
    """Sizes that come again."""
    rounds: Count = 2
    """How often these do."""
    out: Path = Path("results/sizes")
    """Folder to write to."""

    @classmethod
    def known(cls) -> list[str]:
        """All models by name."""
        return list(SIZED)


def draw_sizes(lengths: int) -> list[Size]:
    """All sizes, in an order that is always the same."""
    texts = range(SHORTEST, SHORTEST + lengths)
    sizes = [(b, h, w, text) for b, (h, w), text in product(BATCHES, PICTURES, texts)]
    random.Random(0).shuffle(sizes)
    return sizes


def find_worst(case: Sized, denoiser: Any, size: Size) -> float:
    """Largest difference of an output at a size from the untouched model's under hooks."""
    oracle, worst = None, 0.0
    for step in range(STEPS):
        inputs = case.inputs(*size, step=step)
        found = denoiser(**inputs).sample
        sites = denoiser.table.sites
        oracle = oracle or Oracle(case.model, dict.fromkeys(sites, False))
        actions = dict(zip(sites, map(int, denoiser.table.actions[step]), strict=True))
        (expected,) = oracle(actions, inputs)
        worst = max(worst, float((found - expected).abs().max()))
    return worst


@torch.no_grad()
def try_sizes(name: str, options: Options) -> Row:
    """All sizes of a model, and some of them again."""
    case, graphs = SIZED[name](), list[fx.GraphModule]()

    def count(graph: fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    memory, sizes = Memory(torch.device("cpu")), draw_sizes(options.lengths)
    with patch.object(tiers, "capture", wraps=tiers.capture) as captured:
        denoiser = dqar_fx.transform(
            case.model,
            dqar_fx.Schedule.interval(STEPS, 2),
            compile={"backend": count, "dynamic": True},
        )
        worst = max(find_worst(case, denoiser, size) for size in tqdm(sizes, desc=name))
        num_graphs, before = len(graphs), memory.read_now()
        again = sizes[: options.again] * options.rounds
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in tqdm(again, desc=f"{name}, again"):
                worst = max(worst, find_worst(case, denoiser, size))
        return Row(
            model=name,
            sizes=len(sizes),
            captures=captured.call_count,
            graphs=num_graphs,
            graphs_again=len(graphs) - num_graphs,
            worst=worst,
            mib=before / 2**20,
            mib_after=memory.read_now() / 2**20,
            calls=STEPS * (len(sizes) + len(again)),
        )


COLUMNS = [
    Column("model", "model"),
    Column("sizes", "sizes"),
    Column("captures", "captures"),
    Column("graphs", "graphs"),
    Column("graphs later", "graphs_again"),
    Column("worst difference", "worst", ".1e"),
    Column("MiB", "mib", ".0f"),
    Column("MiB after", "mib_after", ".0f"),
    Column("calls", "calls"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write."""
    machine = describe_machine(torch.device("cpu"))
    rows = [try_sizes(name, options) for name in options.names]
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    path = options.out / "rows.jsonl"
    write_rows(rows, path, machine)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
