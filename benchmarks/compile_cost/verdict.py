"""The verdict: what the rows say of what was claimed of the cost of compilation."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compile_cost.options import Options
from benchmarks.compile_cost.points import Point, middle
from benchmarks.compile_cost.rows import Row

OF_WHOLE, MORE_LAYERS, MORE_STEPS = 0.5, 1.2, 1.05
"""Highest ratio of cold seconds: to whole-model compilation, with more layers, more steps."""


@dataclass(frozen=True)
class Claim:
    """A ratio of cold seconds, and how high it may be.

    Attributes:
        what: In words.
        above: The numerator.
        below: The denominator.
        bar: The highest ratio that holds.
    """

    what: str
    above: Point
    below: Point
    bar: float

    def judge(self, rows: Sequence[Row]) -> str:
        """One line: the ratio of medians, the range over pairs, and whether it holds."""
        above, below = (by_repeat(rows, point) for point in (self.above, self.below))
        paired = [above[repeat] / below[repeat] for repeat in sorted({*above} & {*below})]
        if not paired:
            return f"{self.what}: not measured"
        ratio = statistics.median(above.values()) / statistics.median(below.values())
        said = "holds" if ratio <= self.bar else "does not hold"
        return (
            f"{self.what}: {ratio:.3f} ({min(paired):.3f}-{max(paired):.3f}, pairs: "
            f"{len(paired)}), at most {self.bar:.2f}: {said}"
        )


def by_repeat(rows: Sequence[Row], point: Point) -> dict[int, float]:
    """Cold seconds of a point, by repeat."""
    return {
        row.repeat: row.measured.compile_s
        for row in rows
        if (row.point, row.phase) == (point, "cold") and row.measured is not None
    }


def list_claims(options: Options) -> list[Claim]:
    """What can be judged of these numbers of layers and steps."""
    steps = middle(options.steps)
    by_layers = {g.layers: Point("regional", g, steps) for g in options.geometries}
    layers, most_layers = middle(list(by_layers)), max(by_layers)
    most_steps = max(options.steps)
    claims = [
        Claim(
            f"{point.geometry.layers} layers, {steps} steps, regional by whole",
            by_layers[point.geometry.layers],
            point,
            OF_WHOLE,
        )
        for point in options.points
        if point.kind == "whole"
    ]
    if most_layers > layers:
        what = f"{steps} steps, {most_layers} by {layers} layers"
        claims.append(Claim(what, by_layers[most_layers], by_layers[layers], MORE_LAYERS))
    if most_steps > steps:
        what = f"{layers} layers, {most_steps} by {steps} steps"
        longest = Point("regional", by_layers[layers].geometry, most_steps)
        claims.append(Claim(what, longest, by_layers[layers], MORE_STEPS))
    return claims


def format_verdict(rows: Sequence[Row], options: Options) -> list[str]:
    """A line for each claim, and one for breaks and recompiles."""
    measured = [row.measured for row in rows if row.measured is not None]
    broken = sum(each.breaks for each in measured)
    again = sum(each.recompiles for each in measured)
    said = "holds" if measured and not broken + again else "does not hold"
    return [
        *(f"cold seconds, {claim.judge(rows)}" for claim in list_claims(options)),
        f"{broken} graph breaks and {again} recompiles in {len(measured)} processes, none "
        f"allowed: {said}",
    ]
