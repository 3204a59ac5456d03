"""Time compilation in processes of its own: cold, with an empty cache, then warm.

The warm process has the cache that the cold one has left. The untransformed model as one
graph, and linear schedules by regions, at each number of layers, of steps, and of distinct
rows; one thing at a time differs from the middle of the given numbers. Repeats take turns.

After an interruption the same command goes on where the run was: what rows.jsonl has of the
same settings, machine and commit is not measured again. What failed is tried again.

Examples::

    python -m benchmarks.compile_cost                       # 12 28 56 layers, 20 50 100 steps
    python -m benchmarks.compile_cost --layers 12 --steps 50 --ramps --repeats 1
    python -m benchmarks.compile_cost --layers 28 --width 1152 --heads 16       # DiT-XL/2
    python -m benchmarks.compile_cost --quick --out results/quick      # does it run at all?
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import msgspec
import torch
from tqdm import tqdm

from benchmarks.compile_cost.process import write_order
from benchmarks.compile_cost.rows import PHASES, Measured, Point, Row, cross, middle
from benchmarks.compile_cost.table import (
    format_notes,
    format_points,
    format_verdict,
    list_claims,
)
from benchmarks.harness.apart import run_apart
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.options import (
    Count,
    Counts,
    CpuOptions,
    above,
    at_least,
    default_is,
    quick_flag,
    run_command,
    several,
)
from benchmarks.harness.rows import append_rows, read_rows
from benchmarks.harness.tables import wrap_notes
from benchmarks.harness.timing import rotate

CPU = torch.device("cpu")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
NUMBERS_OR_NONE = several(at_least(1), "N", none_allowed=True)
SMALL = {"width": 32, "heads": 2, "tokens": 16}
QUICK = {"layers": (2,), "steps": (8,), "ramps": (), "repeats": 1, **SMALL}


@dataclass(frozen=True)
class Options(CpuOptions):
    """Options of this command."""

    COMMAND = "benchmarks.compile_cost"
    WHY_COMPILER = "this measures compilation"
    QUICK = QUICK

    layers: Counts = (12, 28, 56)
    """Numbers of layers (DiT-XL/2: 28, with width 1152 and 16 heads)."""
    width: Count = Geometry.width
    """Channels of a token."""
    heads: Count = Geometry.heads
    """Of attention."""
    tokens: Count = Geometry.tokens
    """Patches of a picture, a square number."""
    batch: Count = Geometry.batch
    """Samples per call."""
    steps: Counts = (20, 50, 100)
    """Steps of linear schedules."""
    ramps: Annotated[tuple[int, ...], NUMBERS_OR_NONE] = (2, 45)
    """Steps over which reuse spreads, or none, beside the schedule's own number."""
    whole: Annotated[tuple[int, ...] | None, NUMBERS_OR_NONE, default_is("the middle")] = None
    """Numbers of layers of which the untransformed model is compiled, or none."""
    repeats: Count = 3
    """Processes of each point and phase."""
    timeout_s: Annotated[float, above(0)] = 1800.0
    """How long a process may take."""
    out: Path = Path("results/compile_cost")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    @property
    def geometries(self) -> list[Geometry]:
        """By number of layers."""
        shape = (self.width, self.heads, self.tokens, self.batch)
        return [Geometry(layers, *shape) for layers in self.layers]

    @property
    def points(self) -> list[Point]:
        """What is compiled, in the order of the table."""
        whole = [g for g in self.geometries if g.layers in (self.whole or ())]
        return [
            *(Point("whole", geometry, steps=1) for geometry in whole),
            *cross(self.geometries, self.steps, self.ramps),
        ]

    @property
    def path(self) -> Path:
        """Where the rows are."""
        return self.out / "rows.jsonl"

    def settle(self) -> Self:
        """The same with each number once, from low to high."""
        layers, steps, ramps = (
            tuple(sorted(set(numbers))) for numbers in (self.layers, self.steps, self.ramps)
        )
        whole = (middle(layers),) if self.whole is None else tuple(sorted(set(self.whole)))
        for each in whole:
            if each not in layers:
                known = " ".join(map(str, layers))
                raise InputError(f"--whole {each} is none of --layers {known}")
        self.geometries[0].check()
        settled = super().settle()
        return replace(settled, layers=layers, steps=steps, ramps=ramps, whole=whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 1 if a process failed, 2 for unusable input."""
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Measure and print; the exit code."""
    machine = describe_machine(CPU)
    rows = measure(options, machine)
    print(f"in the middle: {options.geometries[len(options.geometries) // 2]}\n")
    print(format_points(rows), end="\n\n")
    claims = list_claims(options.points, options.geometries, options.steps)
    print(*format_verdict(rows, claims), "", wrap_notes(format_notes(rows)), "", sep="\n")
    print(machine, f"rows in {options.path}", sep="\n")
    return 1 if any(row.error for row in rows) else 0


def measure(options: Options, machine: Machine) -> list[Row]:
    """Measure what is not on disk, repeat by repeat in rotating order; all rows."""
    points, rows = options.points, list[Row]()
    known = read_rows(options.path, Row)
    with tqdm(desc="processes", unit="pair", total=options.repeats * len(points)) as bar:
        for repeat in range(options.repeats):
            for point in rotate(points, repeat):
                bar.set_description(f"repeat {repeat + 1} of {options.repeats}: {point}")
                mine = find_finished(known, point, repeat, machine)
                if not mine:
                    mine = measure_pair(
                        point, repeat, machine, options.timeout_s, bar.set_postfix_str
                    )
                    append_rows(mine, options.path)
                rows += mine
                bar.update()
    return sorted(rows, key=lambda row: points.index(row.point))


def find_finished(
    known: Sequence[Row], point: Point, repeat: int, machine: Machine
) -> list[Row]:
    """The rows of a point and repeat that are on disk, the latest; none if one is missing."""
    mine = {
        row.phase: row
        for row in known
        if row.is_of(point, repeat, machine) and row.error is None
    }
    return [mine[phase] for phase in PHASES] if len(mine) == len(PHASES) else []


def measure_pair(
    point: Point,
    repeat: int,
    machine: Machine,
    timeout_s: float,
    tell: Callable[[str], object],
) -> list[Row]:
    """A cold process and, unless that failed, a warm one over the cache that it has left."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        said = folder / "said"
        for phase in PHASES:
            tell(phase)
            start = time.perf_counter()
            error = run_apart(
                "benchmarks.compile_cost.process",
                [write_order(point, machine.threads)],
                said=said,
                complaint=folder / "complaint",
                timeout_s=timeout_s,
                env={cache: str(folder / cache) for cache in CACHES},
            )
            seconds = time.perf_counter() - start
            line = None if error else said.read_text().splitlines()[-1]
            measured = msgspec.json.decode(line, type=Measured) if line else None
            rows.append(Row(point, phase, repeat, seconds, measured, error, machine))
            if error:
                break
    return rows
