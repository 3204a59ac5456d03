"""Points, which are compiled, and rows: what a process measured of a point."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import dqar_fx
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import Machine
from benchmarks.harness.rows import SHARED

WARMUP = 5
"""First steps of the linear schedules, which compute everything."""
KINDS = {
    "whole": "untransformed, torch.compile(fullgraph=True)",
    "regional": "linear schedule, by regions",
}
PHASES = ("cold", "warm")
"""With an empty cache; with the one that the cold process has left."""


@dataclass(frozen=True)
class Point:
    """Something that is compiled.

    Attributes:
        kind: A key of `KINDS`.
        geometry: Of the model.
        steps: Of the trajectory; 1 for the untransformed model.
        ramp: Steps over which reuse spreads; None for the schedule's own number.
    """

    kind: str
    geometry: Geometry = field(metadata=SHARED)
    steps: int
    ramp: int | None = None

    def __str__(self) -> str:
        if self.kind == "whole":
            return f"{self.geometry.layers} layers, whole"
        ramp = "" if self.ramp is None else f", ramp {self.ramp}"
        return f"{self.geometry.layers} layers, {self.steps} steps{ramp}"

    @property
    def schedule(self) -> dqar_fx.Schedule:
        """The schedule: linear."""
        full_from = None if self.ramp is None else WARMUP + self.ramp
        return dqar_fx.Schedule.linear(self.steps, WARMUP, full_from=full_from)


def middle(values: Sequence[int]) -> int:
    """The one in the middle of sorted values; the upper one of two."""
    return values[len(values) // 2]


def cross(
    geometries: Sequence[Geometry], steps: Sequence[int], ramps: Sequence[int]
) -> list[Point]:
    """Schedules in which one thing at a time differs from the middle.

    Args:
        geometries: By number of layers.
        steps: Numbers of steps, sorted.
        ramps: Steps over which reuse spreads, beside the schedule's own number.
    """
    centre = geometries[len(geometries) // 2]
    return [
        *(Point("regional", each, middle(steps)) for each in geometries),
        *(Point("regional", centre, each) for each in steps if each != middle(steps)),
        *(Point("regional", centre, middle(steps), each) for each in ramps),
    ]


@dataclass(frozen=True)
class Measured:
    """What one process measured.

    Attributes:
        transform_s: Capture, passes and table, nothing compiled; None if untransformed.
        compile_s: That, and the steps that compiled something less the same steps again.
        other_s: The other steps of the first trajectory less the same steps again.
        run_s: The second trajectory.
        graphs: Graphs compiled in the first trajectory.
        breaks: Graph breaks.
        recompiles: Graphs compiled in the second trajectory.
        cache_hits: Graphs that were found in the cache on disk.
        distinct_rows: Of the branch table; 1 for the untransformed model.
    """

    transform_s: float | None
    compile_s: float
    other_s: float
    run_s: float
    graphs: int
    breaks: int
    recompiles: int
    cache_hits: int
    distinct_rows: int


@dataclass(frozen=True)
class Row:
    """One process.

    Attributes:
        point: What it compiled.
        phase: One of `PHASES`.
        repeat: Which repeat, from 0.
        process_s: Time of the whole process.
        measured: What it measured; None if it failed.
        error: What went wrong, or None.
        machine: Where.
    """

    point: Point = field(metadata=SHARED)
    phase: str
    repeat: int
    process_s: float
    measured: Measured | None = field(metadata=SHARED)
    error: str | None
    machine: Machine = field(metadata=SHARED)

    def is_of(self, point: Point, repeat: int, machine: Machine) -> bool:
        """Whether it is a measurement of that, there, of the same sources."""
        mine, asked = (
            (each.commit, each.dirty, each.processor, each.cores, each.threads, each.torch)
            for each in (self.machine, machine)
        )
        return (self.point, self.repeat, mine) == (point, repeat, asked)


def select(rows: Sequence[Row], point: Point, phase: str) -> dict[int, Measured]:
    """What was measured of a point in a phase, by repeat."""
    mine = (row for row in rows if (row.point, row.phase) == (point, phase))
    return {row.repeat: row.measured for row in mine if row.measured is not None}
