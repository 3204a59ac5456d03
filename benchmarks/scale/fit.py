"""Growth as a power law: time is proportional to size to the power of an exponent."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate

from benchmarks.scale.phases import PHASES, Growth

LINEAR = 1.15
"""Highest exponent that is called linear: 8 times as much takes at most 11 times as long."""
COUNTS = ("nodes", "calls", "regions", "variants", "distinct_rows")
AXES = ("layers", "steps")


def fit_exponent(times: Mapping[int, float]) -> float:
    """The slope of a line through logarithms of size and time."""
    sizes, seconds = np.log(list(times)), np.log(list(times.values()))
    return float(np.polyfit(sizes, seconds, 1)[0])


def median_times(rows: Sequence[Growth], axis: str, phase: str) -> dict[int, float]:
    """By layers or steps, the median time of a phase; the other is as in most rows."""
    fixed = fix_other(rows, axis)
    sizes = sorted({getattr(row, axis) for row in fixed})
    return {
        size: statistics.median(
            row.seconds[phase] for row in fixed if getattr(row, axis) == size
        )
        for size in sizes
    }


def fix_other(rows: Sequence[Growth], axis: str) -> list[Growth]:
    """Rows that differ in one thing only: those with the commonest value of the other."""
    (other,) = set(AXES) - {axis}
    by_value: dict[int, set[int]] = {}
    for row in rows:
        by_value.setdefault(getattr(row, other), set()).add(getattr(row, axis))
    fixed = max(by_value, key=lambda value: len(by_value[value]))
    return [row for row in rows if getattr(row, other) == fixed]


def format_growth(rows: Sequence[Growth], axis: str) -> str:
    """Milliseconds of each phase by layers or steps, exponents, and counts."""
    fixed = fix_other(rows, axis)
    sizes = sorted({getattr(row, axis) for row in fixed})
    lines = [format_phase(phase, median_times(rows, axis, phase)) for phase in PHASES]
    for name in COUNTS:
        counts = {getattr(row, axis): getattr(row, name) for row in fixed}
        lines.append([name.replace("_", " "), *(counts[size] for size in sizes), "", ""])
    headers = [axis, *sizes, "exponent", "of the last two"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def format_phase(phase: str, times: Mapping[int, float]) -> list[str]:
    """Times in milliseconds, the exponent of all and that of the largest two."""
    cells = [f"{1e3 * seconds:.1f}" for seconds in times.values()]
    exponents = (fit_exponent(times), fit_exponent(dict(list(times.items())[-2:])))
    return [f"{phase} ms", *cells, *(f"{each:.2f}" for each in exponents)]


def format_verdict(rows: Sequence[Growth]) -> list[str]:
    """For layers and steps, whether no phase grows faster than linearly."""
    lines = []
    for axis in AXES:
        found = {phase: fit_exponent(median_times(rows, axis, phase)) for phase in PHASES}
        steepest = max(found, key=lambda phase: found[phase])
        largest = max(getattr(row, axis) for row in rows)
        said = "holds" if found[steepest] <= LINEAR else "does not hold"
        lines.append(
            f"linear in {axis} up to {largest:,}: steepest is {steepest}, exponent "
            f"{found[steepest]:.2f}, at most {LINEAR}: {said}"
        )
    return lines
