"""One contender against the unit, in a process of their own.

The contender comes first, while Inductor's cache is empty: its first trajectory is cold. A
second one is watched (memory, what the cache holds, multiply-accumulates in eager mode). The
unit's kernels come from a folder that all processes share. Then both take turns.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness.machine import set_up_compiler
from benchmarks.harness.store import Piece
from benchmarks.harness.timing import Compiled
from benchmarks.pareto.contenders import (
    BASE,
    BLOCKS,
    COMPILED,
    EAGER,
    Contender,
    Entrant,
)
from benchmarks.pareto.judged import Gallery
from benchmarks.pareto.race import Race, quiet_compiler
from benchmarks.pareto.recipes import Untransformed
from benchmarks.pareto.records import WARMUP, Record
from benchmarks.pareto.rivals.of_diffusers import measure_magnitudes
from benchmarks.pareto.standin import Counting
from benchmarks.peers.memory import Memory, watched
from benchmarks.peers.options import Options
from benchmarks.peers.plan import Plan
from benchmarks.peers.recipes import STOCK, Peer
from benchmarks.peers.stage import Stage
from dqar_fx import Denoiser

CACHE = "TORCHINDUCTOR_CACHE_DIR"


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
            self.warm_unit()
            for number in missing:
                self.repeat(number, [self.guest], 1, bar)

    def warm_unit(self) -> None:
        """Compile the unit, with the folder that all processes share."""
        if self.warm_cache is not None:
            os.environ[CACHE] = str(self.warm_cache)
        unit = self.base
        entrant = self.entrants[unit.name] = unit.recipe.build(self.bench, unit.mode)
        self.bench.run(entrant, unit.steps, self.bench.task(WARMUP))

    def warm_up(self, contender: Contender) -> None:
        """Build a contender, run a first trajectory, and watch a second one."""
        record, before = self.records[contender.name], Compiled.so_far()
        self.memory.start()
        entrant = contender.recipe.build(self.bench, contender.mode)
        images, took_s = self.bench.run(entrant, contender.steps, self.bench.task(WARMUP))
        first, first_peak = Compiled.so_far() - before, self.memory.above()
        if not images.isfinite().all():
            raise ValueError("its pictures hold NaN or infinity")
        self.entrants[contender.name] = entrant
        if record.facts:
            return  # of an earlier process: only to compile again
        self.memory.reset()
        held, macs = self.look(entrant, contender)
        record.images[WARMUP] = images
        record.note(
            warmup_s=took_s,
            is_built=first.graphs > 0 or isinstance(entrant.module, Denoiser),
            graphs=first.graphs,
            breaks=first.breaks,
            recompiles=(Compiled.so_far() - before - first).graphs,
            first_peak_bytes=first_peak,
            later_peak_bytes=self.memory.above(),
            cache_bytes=held,
            hooked=entrant.hooked,
            macs=macs,
            machine=self.describe_machine(),
        )

    def look(self, entrant: Entrant, contender: Contender) -> tuple[int | None, int | None]:
        """The second trajectory: bytes that the cache holds at most, multiply-accumulates."""
        counting = Counting(entrant.module) if contender.mode in (EAGER, STOCK) else None
        running = entrant if counting is None else replace(entrant, module=counting)
        with watched(entrant) as held:
            self.bench.run(running, contender.steps, self.bench.task(WARMUP))
        return max(held, default=None), None if counting is None else counting.macs


def measure(options: Options, stage: Stage, plan: Plan, contender: Peer) -> None:
    """What a process measures: times, and the pictures that are judged."""
    record = Record.load(plan.times(contender))
    prepare(stage, contender, options)
    with tempfile.TemporaryDirectory() as scratch:
        unit = make_unit(options)
        records = {contender.name: record, unit.name: Record(Piece(Path(scratch) / "u", {}))}
        duel = Duel(
            bench=stage,
            base=unit,
            contenders=[unit, contender],
            records=records,
            guest=contender,
            memory=Memory(options.device),
            warm_cache=options.warm_cache,
        )
        duel.meet(options.repeats)
    if options.images and contender.is_shown and record.error is None:
        gallery = Gallery(stage, {contender.name: contender}, duel.entrants, options.images)
        errors = gallery.fill({contender.name: [plan.pictures(contender)]})
        if errors:
            record.note(error=errors[contender.name])


def prepare(stage: Stage, contender: Peer, options: Options) -> None:
    """Do what is neither compile time nor memory of a contender."""
    if not options.eager:
        set_up_compiler(options.device)
    stage.run(Entrant(stage.original), 1, stage.task(WARMUP))
    if "MagCache" in contender.setting:
        stage.once(measure_magnitudes)
    if contender.tool is not None or contender.mode == BLOCKS:
        stage.prepare_clone()
    if contender.family.kind == "fewer" and options.warm_cache is not None:
        os.environ[CACHE] = str(options.warm_cache)  # the unit's graph: nothing of its own


def make_unit(options: Options) -> Peer:
    """The contender whose time is the unit: what the first row is, apart from its name."""
    mode = EAGER if options.eager else COMPILED
    return Peer("unit", BASE, options.steps, Untransformed(), mode)
