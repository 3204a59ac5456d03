"""The table: a line for each point, medians and ranges over repeats."""

import statistics
from collections.abc import Sequence

from tabulate import tabulate

from benchmarks.compile_cost.points import KINDS, Point
from benchmarks.compile_cost.rows import PHASES, Measured, Row

HEADERS = (
    "what",
    "layers",
    "steps",
    "rows",
    "transform s",
    "cold s (range)",
    "warm s (range)",
    "graphs",
    "breaks",
    "recompiles",
    "runs",
)


def select(rows: Sequence[Row], point: Point, phase: str) -> list[Measured]:
    """What was measured of a point in a phase."""
    mine = (row for row in rows if (row.point, row.phase) == (point, phase))
    return [row.measured for row in mine if row.measured is not None]


def format_table(rows: Sequence[Row]) -> str:
    """The table of all points that have rows, in order of first appearance."""
    points = dict.fromkeys(row.point for row in rows)
    lines = [format_line(rows, point) for point in points]
    return tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True)


def format_line(rows: Sequence[Row], point: Point) -> list[str]:
    """The line of a point."""
    cold, warm = (select(rows, point, phase) for phase in PHASES)
    done = [*cold, *warm]
    transforms = [each.transform_s for each in done if each.transform_s is not None]
    counts = ([each.graphs for each in done], [each.breaks for each in done])
    return [
        point.kind,
        str(point.geometry.layers),
        "-" if point.kind == "whole" else str(point.steps),
        show_counts([each.distinct_rows for each in done]),
        f"{statistics.median(transforms):.2f}" if transforms else "-",
        show_times([each.compile_s for each in cold]),
        show_times([each.compile_s for each in warm]),
        *map(show_counts, counts),
        show_counts([each.recompiles for each in done]),
        f"{len(cold)}+{len(warm)}",
    ]


def show_times(times: Sequence[float]) -> str:
    """Median, and from least to most where there are several."""
    if not times:
        return "failed"
    median = f"{statistics.median(times):.1f}"
    return median if len(times) == 1 else f"{median} ({min(times):.1f}-{max(times):.1f})"


def show_counts(counts: Sequence[int]) -> str:
    """A number that all have, or from least to most."""
    if not counts:
        return "-"
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def format_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns are, and what went wrong."""
    kinds = dict.fromkeys(row.point.kind for row in rows)
    notes = [f"{kind}: {KINDS[kind]}." for kind in kinds]
    notes.append(
        "cold, warm: transformation and compilation, with an empty cache and with the one "
        "that the cold process left; rows: distinct ones of the branch table; transform: "
        "capture, passes and table alone, a part of both; recompiles: of a second "
        "trajectory; runs: cold and warm processes."
    )
    notes += [
        f"failed: {row.point}, {row.phase}, repeat {row.repeat + 1}: {row.error}"
        for row in rows
        if row.error is not None
    ]
    return notes
