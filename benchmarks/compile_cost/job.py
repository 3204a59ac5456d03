"""The measurement: from the command line to the rows, the table and the verdict."""

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.compile_cost.apart import Launcher
from benchmarks.compile_cost.options import Options, parse_options
from benchmarks.compile_cost.points import Point
from benchmarks.compile_cost.rows import PHASES, Row, append_rows, read_rows
from benchmarks.compile_cost.table import format_notes, format_table
from benchmarks.compile_cost.verdict import format_verdict
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import Machine, describe_machine

WIDTH = 95
Measure = Callable[[Point, int], list[Row]]
"""Rows of a point in one repeat: cold and, unless that failed, warm."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if a process failed, 2 for unusable input, 130 if interrupted.
    """
    options = parse_options(argv)
    machine = describe_machine(torch.device("cpu"))
    try:
        with tqdm(desc="processes", unit="pair") as bar:
            launcher = Launcher(machine, options.timeout_s, bar.set_postfix_str)
            rows = run(options, machine, launcher.measure, bar)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    report(rows, options, machine)
    return 1 if any(row.error for row in rows) else 0


def run(options: Options, machine: Machine, measure: Measure, bar: "tqdm[None]") -> list[Row]:
    """Measure what is not on disk, repeat by repeat in rotating order; all rows."""
    path = name_rows(options)
    known, rows = read_rows(path), list[Row]()
    bar.reset(total=options.repeats * len(options.points))
    for repeat in range(options.repeats):
        first = repeat % len(options.points)
        for point in [*options.points[first:], *options.points[:first]]:
            bar.set_description(f"repeat {repeat + 1} of {options.repeats}: {point}")
            mine = find_finished(known, point, repeat, machine)
            if not mine:
                mine = measure(point, repeat)
                append_rows(mine, path)
            rows += mine
            bar.update()
    return sorted(rows, key=lambda row: options.points.index(row.point))


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


def name_rows(options: Options) -> Path:
    """Where the rows are."""
    return options.out / "rows.jsonl"


def report(rows: Sequence[Row], options: Options, machine: Machine) -> None:
    """Print the table, the verdict and what they were measured with."""
    geometry = options.geometries[len(options.geometries) // 2]
    notes = (textwrap.fill(note, WIDTH) for note in format_notes(rows))
    print(f"in the middle: {geometry}", format_table(rows), sep="\n\n")
    print("", *format_verdict(rows, options), "", *notes, "", machine, sep="\n")
    print(f"rows in {name_rows(options)}")
