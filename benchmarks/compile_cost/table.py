"""The table, a line for each point, and the verdict on what is claimed of the cost."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.compile_cost.rows import KINDS, PHASES, Point, Row, middle, select
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.timing import find_range, take_ratios

OF_WHOLE, MORE_LAYERS, MORE_STEPS = 0.5, 1.2, 1.05
"""Highest ratio of cold seconds: to whole-model compilation, with more layers, more steps."""


@dataclass(frozen=True)
class Line:
    """All repeats of a point."""

    point: Point
    rows: Sequence[Row]

    def list_values(self, name: str, *phases: str) -> list[float]:
        """A figure of each process, or of those of some phases; none where it is not known."""
        found = [
            getattr(each, name)
            for phase in phases or PHASES
            for each in select(self.rows, self.point, phase).values()
        ]
        return [value for value in found if value is not None]

    def show_seconds(self, phase: str) -> str:
        """Median, and from least to most where there are several."""
        times = self.list_values("compile_s", phase)
        if not times:
            return "failed"
        return f"{find_range(times):.1f}" if len(times) > 1 else f"{times[0]:.1f}"

    def show_count(self, name: str) -> str | None:
        """A number that all have, or from least to most."""
        counts = sorted({f"{count}" for count in self.list_values(name)}, key=int)
        return "-".join(dict.fromkeys((counts[0], counts[-1]))) if counts else None

    @property
    def transform_s(self) -> float | None:
        """The median, if there is a transformation."""
        times = self.list_values("transform_s")
        return statistics.median(times) if times else None


def count_column(header: str, name: str) -> Column:
    """A column of what all processes count."""
    return Column(header, lambda line: line.show_count(name))


COLUMNS = (
    Column("what", "point.kind"),
    Column("layers", "point.geometry.layers"),
    Column("steps", lambda line: None if line.point.kind == "whole" else line.point.steps),
    count_column("rows", "distinct_rows"),
    Column("transform s", "transform_s", ".2f"),
    *(
        Column(f"{phase} s (range)", lambda line, phase=phase: line.show_seconds(phase))
        for phase in PHASES
    ),
    *(count_column(name, name) for name in ("graphs", "breaks", "recompiles")),
    Column(
        "runs", lambda line: "+".join(str(len(line.list_values("graphs", p))) for p in PHASES)
    ),
)


def format_points(rows: Sequence[Row]) -> str:
    """The table of all points that have rows, in order of first appearance."""
    points = dict.fromkeys(row.point for row in rows)
    return format_table(COLUMNS, [Line(point, rows) for point in points])


def format_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns are, and what went wrong."""
    kinds = dict.fromkeys(row.point.kind for row in rows)
    failures = [row for row in rows if row.error is not None]
    return [
        *(f"{kind}: {KINDS[kind]}." for kind in kinds),
        "cold, warm: transformation and compilation, with an empty cache and with the one "
        "that the cold process left; rows: distinct ones of the branch table; transform: "
        "capture, passes and table alone, a part of both; recompiles: of a second "
        "trajectory; runs: cold and warm processes.",
        *(
            f"failed: {row.point}, {row.phase}, repeat {row.repeat + 1}: {row.error}"
            for row in failures
        ),
    ]


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
        above, below = (
            {repeat: each.compile_s for repeat, each in select(rows, point, "cold").items()}
            for point in (self.above, self.below)
        )
        repeats = sorted({*above} & {*below})
        if not repeats:
            return f"{self.what}: not measured"
        pairs = find_range(
            take_ratios(*([side[r] for r in repeats] for side in (above, below)))
        )
        ratio = statistics.median(above.values()) / statistics.median(below.values())
        said = "holds" if ratio <= self.bar else "does not hold"
        return (
            f"{self.what}: {ratio:.3f} ({pairs.low:.3f}-{pairs.high:.3f}, pairs: "
            f"{len(repeats)}), at most {self.bar:.2f}: {said}"
        )


def list_claims(
    points: Iterable[Point], geometries: Sequence[Geometry], steps: Sequence[int]
) -> list[Claim]:
    """What can be judged of these numbers of layers and steps."""
    num_steps, most_steps = middle(steps), max(steps)
    by_layers = {g.layers: Point("regional", g, num_steps) for g in geometries}
    layers, most_layers = middle(list(by_layers)), max(by_layers)
    claims = [
        Claim(
            f"{point.geometry.layers} layers, {num_steps} steps, regional by whole",
            by_layers[point.geometry.layers],
            point,
            OF_WHOLE,
        )
        for point in points
        if point.kind == "whole"
    ]
    if most_layers > layers:
        what = f"{num_steps} steps, {most_layers} by {layers} layers"
        claims.append(Claim(what, by_layers[most_layers], by_layers[layers], MORE_LAYERS))
    if most_steps > num_steps:
        what = f"{layers} layers, {most_steps} by {num_steps} steps"
        longest = Point("regional", by_layers[layers].geometry, most_steps)
        claims.append(Claim(what, longest, by_layers[layers], MORE_STEPS))
    return claims


def format_verdict(rows: Sequence[Row], claims: Iterable[Claim]) -> list[str]:
    """A line for each claim, and one for breaks and recompiles."""
    measured = [row.measured for row in rows if row.measured is not None]
    broken = sum(each.breaks for each in measured)
    again = sum(each.recompiles for each in measured)
    said = "holds" if measured and not broken + again else "does not hold"
    return [
        *(f"cold seconds, {claim.judge(rows)}" for claim in claims),
        f"{broken} graph breaks and {again} recompiles in {len(measured)} processes, none "
        f"allowed: {said}",
    ]
