"""Measure quality against the time of whole trajectories, interleaved in one process.

These take part: the model with fewer steps, and with other solvers; with the schedules and
forecasts of dqar_fx; with tables from a folder; with the caches of diffusers and cache-dit;
and with their schedules run by dqar_fx. Quality is the distance to the pictures of a solver
with so many steps that they count as converged. Write rows, a table and a drawing of the
front. After an interruption the same command goes on where the run was.

Examples::

    python -m benchmarks.pareto                                    # the reference pipeline
    python -m benchmarks.pareto --tables my-front/tables           # and optimised tables
    python -m benchmarks.pareto --solvers results/solvers          # and other solvers
    python -m benchmarks.pareto --budcache 6 8 10 12               # and what BudCache finds
    python -m benchmarks.pareto --only fewer forecast cache-dit --judge none
    python -m benchmarks.pareto --judge "20 steps" "forecast order 2, every 4"
    python -m benchmarks.pareto --quick --out results/quick        # does it run at all?
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from benchmarks.contenders.kinds import KEYS
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import can_compile
from benchmarks.harness.options import (
    Count,
    Lowering,
    Patterns,
    above,
    at_least,
    convert_with,
    default_is,
    number,
    one_of,
    quick_flag,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions
from dqar_fx.optimiser.teacher import TEACHER_STEPS
from dqar_fx.schedule.forecast import MAX_ORDER

SWEEP = (10, 12, 14, 15, 17, 20, 22, 25, 30, 35, 40)
QUICK = {
    "steps": 8,
    "samples": 2,
    "repeats": 1,
    "fewer": (4,),
    "every": (2,),
    "orders": (1,),
    "teacher": 12,
    "images": 6,
    "lowering": "eager",
}
ORDER = number(int, lambda order: 1 <= order <= MAX_ORDER, f"1 to {MAX_ORDER}")


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of this command."""

    COMMAND = "benchmarks.pareto"
    QUICK = QUICK

    lowering: Lowering = "regional"
    """How schedules are compiled."""
    steps: Annotated[int, at_least(2)] = 50
    """Denoising steps of the full run."""
    guidance: float = 1.5
    """Guidance scale."""
    samples: Count = 8
    """Pictures in a batch."""
    only: Annotated[tuple[str, ...], several(one_of(KEYS)), default_is("all")] = KEYS
    """Families that take part."""
    rows: Patterns = ("*",)
    """Rows of such names."""
    fewer: Annotated[
        tuple[int, ...] | None,
        several(at_least(1), "STEPS"),
        default_is(f"{' '.join(map(str, SWEEP))} of 50"),
    ] = None
    """Steps of the untransformed model."""
    every: Annotated[tuple[int, ...], several(at_least(2), "N")] = (2, 3, 4, 5)
    """Distances of computed steps."""
    orders: Annotated[tuple[int, ...], several(ORDER, "N")] = (1, 2)
    """Of forecasts."""
    warmup: Count = 1
    """First steps that compute all."""
    tables: Annotated[Path | None, convert_with(Path, "FOLDER"), default_is("none")] = None
    """Branch tables, a row for each JSON."""
    solvers: Annotated[Path | None, convert_with(Path, "FOLDER"), default_is("none")] = None
    """What benchmarks.solvers wrote: each solver at its best spacing, and fitted ones."""
    budcache: Annotated[
        tuple[int, ...], several(at_least(1), "STEPS"), default_is("none")
    ] = ()
    """Computed steps that BudCache's search distributes, each in a run of its own."""
    budcache_trials: Count = 400
    """Sets of steps that each of these searches may try."""
    teacher: Annotated[int, at_least(0)] = TEACHER_STEPS
    """Steps of DPM-Solver++ (2M) that count as converged; 0 for no teacher."""
    repeats: Count = 5
    """Timed trajectories per row."""
    pair: Count = 4
    """Rows per trajectory of the base."""
    targets: Annotated[tuple[float, ...], several(above(1), "SPEED")] = (2.0, 2.5)
    """Speeds at which rows are compared."""
    judge: Annotated[
        tuple[str, ...] | None,
        several(convert_with(str, "ROW")),
        default_is("of each family those nearest to the targets"),
    ] = None
    """Rows to judge against real pictures, or "none"."""
    images: Annotated[int, at_least(0)] = 2100
    """Per judged row; 0 for none."""
    seed_groups: Count = 3
    """Groups of seeds that these are spread over."""
    out: Path = Path("results/pareto")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    def settle(self) -> Self:
        """The same with each value once, in eager mode where there is no compiler."""
        settled = super().settle()
        if self.images % self.seed_groups:
            raise InputError(
                f"--images {self.images} is no multiple of --seed-groups {self.seed_groups}: "
                "each group needs as many pictures"
            )
        named = {
            name: tuple(dict.fromkeys(getattr(self, name)))
            for name in ("only", "rows", "every", "orders", "targets", "budcache")
        }
        lowering = self.lowering
        if lowering != "eager" and not can_compile(settled.device):
            print("no C++ compiler was found: nothing is compiled", file=sys.stderr)
            lowering = "eager"
        judge = () if self.judge == ("none",) else self.judge
        fewer = self.choose_fewer()
        return replace(settled, **named, lowering=lowering, judge=judge, fewer=fewer)

    def choose_fewer(self) -> tuple[int, ...]:
        """Numbers of steps below the full one; by default shares as of a full run of 50."""
        if self.fewer is None:
            scaled = (max(1, round(self.steps * number / 50)) for number in SWEEP)
            return tuple(dict.fromkeys(number for number in scaled if number < self.steps))
        if max(self.fewer) >= self.steps:
            raise InputError(
                f"--fewer {max(self.fewer)} is not fewer than --steps {self.steps}"
            )
        return tuple(dict.fromkeys(self.fewer))
