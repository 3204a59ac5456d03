"""Measure one contender against the unit: the process of one row of ``benchmarks.peers``.

The contender comes first, while Inductor's cache is empty: its first trajectory is cold. A
second one is watched (memory, what the cache holds, multiply-accumulates in eager mode). The
unit's kernels come from a folder that all processes share. Then both take turns.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from tqdm import tqdm

from benchmarks.contenders import kinds
from benchmarks.contenders.bench import Bench, Counting
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.hooks import measure_magnitudes
from benchmarks.contenders.race import Race, quiet_compiler
from benchmarks.contenders.records import WARMUP, Plan, Record
from benchmarks.harness.machine import set_up_compiler
from benchmarks.harness.memory import Memory
from benchmarks.harness.options import convert_with, run_command
from benchmarks.harness.store import Piece
from benchmarks.harness.timing import Compiled
from benchmarks.peers.caches import watched
from benchmarks.peers.latents import set_up_bench
from benchmarks.peers.lineup import LOWERINGS, REGIONAL, line_up
from benchmarks.peers.options import Options

CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class RowOptions(Options):
    """Options of the run, and whose row this is."""

    COMMAND = "benchmarks.peers.duel"

    contender: str = ""
    """Name of the row that is measured."""
    warm_cache: Annotated[Path | None, convert_with(Path, "FOLDER")] = None
    """Where the unit's kernels are kept."""


@dataclass(kw_only=True)
class Duel(Race):
    """A race of two.

    Attributes:
        guest: Who runs against the base, which is the unit.
        memory: Of the process.
        warm_cache: Where the unit's kernels are; None for no folder of its own.
    """

    guest: Contender
    memory: Memory
    warm_cache: Path | None = None

    def meet(self, repeats: int) -> None:
        """Make all repeats that are not on disk."""
        record = self.records[self.guest.name]
        missing = [n for n in range(WARMUP + 1, WARMUP + 1 + repeats) if record.lacks(n)]
        if not missing:
            return
        with quiet_compiler(), tqdm(total=len(missing), desc=self.guest.name) as bar:
            self.attempt(self.warm_up, self.guest)
            if record.error is not None:
                return
            if self.warm_cache is not None:  # the folder that all processes share
                os.environ[CACHE] = str(self.warm_cache)
            unit = self.base
            self.entrants[unit.name] = entrant = unit.recipe.build(self.bench, unit.mode)
            self.bench.run(entrant, unit.steps, self.bench.task(WARMUP))
            for number in missing:
                self.repeat(number, [self.guest], 1, bar)

    def warm_up(self, contender: Contender) -> None:
        """The same with an eye on the memory."""
        self.memory.start()
        super().warm_up(contender)

    def examine(
        self, contender: Contender, entrant: Entrant, images: torch.Tensor
    ) -> dict[str, Any]:
        """Watch a second trajectory: memory, what the cache holds, multiply-accumulates."""
        first_peak, before = self.memory.above(), Compiled.so_far()
        if not images.isfinite().all():
            raise ValueError("its pictures hold NaN or infinity")
        if self.records[contender.name].facts:
            return {}
        self.memory.reset()
        is_eager = contender.mode in (kinds.EAGER, kinds.STOCK)
        counting = Counting(entrant.module) if is_eager else None
        running = entrant if counting is None else replace(entrant, module=counting)
        with watched(entrant) as held:
            self.bench.run(running, contender.steps, self.bench.task(WARMUP))
        return {
            "recompiles": (Compiled.so_far() - before).graphs,
            "first_peak_bytes": first_peak,
            "later_peak_bytes": self.memory.above(),
            "cache_bytes": max(held, default=None),
            "macs": None if counting is None else counting.macs,
        }


def measure(options: RowOptions) -> None:
    """Measure times, and the pictures that are judged."""
    lined_up = line_up(options, options.fewer or ())
    contender = next(each for each in lined_up if each.name == options.contender)
    bench = set_up_bench(options, LOWERINGS.get(contender.mode, REGIONAL))
    plan = make_plan(bench, options)
    record = Record.read(plan.times(contender), retry=True)
    prepare(bench, contender, options)
    unit = replace(lined_up[0], setting="unit")  # what the first row is, but for its name
    with tempfile.TemporaryDirectory() as scratch:
        records = {contender.name: record, unit.name: Record(Piece(Path(scratch) / "u", {}))}
        duel = Duel(
            bench=bench,
            base=unit,
            contenders=[unit, contender],
            records=records,
            guest=contender,
            memory=Memory(bench.device),
            warm_cache=options.warm_cache,
        )
        duel.meet(options.repeats or 0)
    if options.images and contender.is_shown and record.error is None:
        name, size = contender.name, options.images
        pieces = {name: [plan.pictures(contender, size)]}
        errors = duel.fill(pieces, size)
        if errors:
            record.note(error=errors[name])


def make_plan(bench: Bench, options: Options) -> Plan:
    """Where the results of a run lie."""
    return Plan.of(bench.pipe, options, unit="eager" if options.eager else "compiled")


def prepare(bench: Bench, contender: Contender, options: RowOptions) -> None:
    """Do what is neither compile time nor memory of a contender."""
    if not options.eager:
        set_up_compiler(bench.device)
    bench.run(Entrant(bench.original), 1, bench.task(WARMUP))
    if "MagCache" in contender.setting:
        bench.once(measure_magnitudes)
    if contender.tool is not None or contender.mode == kinds.BLOCKS:
        bench.prepare_clone()
    if contender.family.kind == "fewer" and options.warm_cache is not None:
        os.environ[CACHE] = str(options.warm_cache)  # the unit's graph: nothing of its own


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of a measuring process; the exit code."""
    return run_command(RowOptions, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
