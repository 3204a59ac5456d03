"""A diff in a few lines: what is saved, and where; equal blocks together."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import astuple
from typing import TYPE_CHECKING

from tabulate import tabulate

from .amounts import Amounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ModuleCounts = tuple[int, ...]
SUMMARY_MODULE = re.compile(r"(.*?\.)(\d+)(\.[^.]+)?(?=\.|$)|([^.]*)")
"""A member of a module list and what is right inside of it; else the outermost module."""


def describe_saved(before: Amounts, after: Amounts) -> str:
    """Say in one line what is saved, and of how much."""
    saved = before - after
    return (
        f"saved: {saved.macs / 1e6:.3f} of {before.macs / 1e6:.3f} MMACs, "
        f"{saved.parameter_bytes / 1e6:.3f} of {before.parameter_bytes / 1e6:.3f} MB of "
        f"parameters, {saved.activation_bytes / 1e6:.3f} of "
        f"{before.activation_bytes / 1e6:.3f} MB of activations"
    )


def tabulate_modules(
    counts: Mapping[str, Mapping[str, int]], saved: Mapping[str, Amounts]
) -> str:
    """Make a table of changes and savings by module; equal blocks are added up."""
    changes = defaultdict[str, Counter[str]](Counter)
    for name, by_path in counts.items():
        for path, count in by_path.items():
            changes[find_summary_module(path)][name] += count
    amounts = defaultdict[str, Amounts](Amounts)
    for path, each in saved.items():
        amounts[find_summary_module(path)] += each
    rows: dict[str, ModuleCounts] = {
        owner: (*(changes[owner][name] for name in counts), *astuple(amounts[owner]))
        for owner in dict.fromkeys((*changes, *amounts))
    }
    lines = [(name or "(model)", *write_row(row)) for name, row in group_blocks(rows).items()]
    headers = ("module", *counts, "kMACs", "parameter kB", "activation kB")
    align = ("left", *("right" for _ in headers[1:]))
    return tabulate(lines, headers, disable_numparse=True, colalign=align)


def find_summary_module(path: str) -> str:
    """Find the module that a path is counted under."""
    match = SUMMARY_MODULE.match(path)
    return match[0] if match else path


def group_blocks(rows: Mapping[str, ModuleCounts]) -> dict[str, ModuleCounts]:
    """Make one row of the rows of all blocks whose numbers are equal: their sums."""
    groups = defaultdict[tuple[str, str, ModuleCounts], list[int]](list)
    for owner, row in rows.items():
        head, number, tail, _ = SUMMARY_MODULE.fullmatch(owner).groups()  # type: ignore[union-attr]
        if number is None:
            groups[owner, "", row] = []
        else:
            groups[head, tail or "", row].append(int(number))
    return {
        f"{head}{ranges(members)}{tail}": tuple(n * max(len(members), 1) for n in row)
        for (head, tail, row), members in groups.items()
    }


def ranges(numbers: Iterable[int], separator: str = ",") -> str:
    """Write ``[0, 1, 2, 5]`` as ``0-2,5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return separator.join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def write_row(row: ModuleCounts) -> list[str]:
    """Write counts, then amounts in thousands; nothing for zero."""
    *counts, macs, parameters, activations = row
    amounts = (macs, parameters, activations)
    return [str(n or "") for n in counts] + [f"{n / 1e3:.1f}" if n else "" for n in amounts]
