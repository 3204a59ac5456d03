"""Points: what is compiled, and how they cross."""

from collections.abc import Sequence
from dataclasses import dataclass

import dqar_fx
from benchmarks.harness.geometry import Geometry

WARMUP = 5
"""First steps of the linear schedules, which compute everything."""
KINDS = {
    "whole": "untransformed, torch.compile(fullgraph=True)",
    "regional": "linear schedule, by regions",
}


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
    geometry: Geometry
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
