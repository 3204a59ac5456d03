"""A diff in a few lines: what is saved, and where; equal blocks together."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import astuple
from typing import TYPE_CHECKING

from tabulate import tabulate

from .amounts import Amounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row = tuple[int, ...]
OWNER = re.compile(r"(.*?\.)(\d+)(\.[^.]+)?(?=\.|$)|([^.]*)")
"""A member of a module list and what is right inside of it; else the outermost module."""


def describe_saved(before: Amounts, after: Amounts) -> str:
    """What is saved, of how much, in one line."""
    saved = before - after
    return (
        f"saved: {saved.macs / 1e6:.3f} of {before.macs / 1e6:.3f} MMACs, "
        f"{saved.parameter_bytes / 1e6:.3f} of {before.parameter_bytes / 1e6:.3f} MB of "
        f"parameters, {saved.activation_bytes / 1e6:.3f} of "
        f"{before.activation_bytes / 1e6:.3f} MB of activations"
    )


def list_modules(counts: Mapping[str, Mapping[str, int]], saved: Mapping[str, Amounts]) -> str:
    """A table of changes and savings by module; what blocks have alike is added up.

    Args:
        counts: By kind of change and module path.
        saved: By module path.
    """
    changes = defaultdict[str, Counter[str]](Counter)
    for name, by_path in counts.items():
        for path, count in by_path.items():
            changes[owner_of(path)][name] += count
    amounts = defaultdict[str, Amounts](Amounts)
    for path, each in saved.items():
        amounts[owner_of(path)] += each
    rows: dict[str, Row] = {
        owner: (*(changes[owner][name] for name in counts), *astuple(amounts[owner]))
        for owner in dict.fromkeys((*changes, *amounts))
    }
    lines = [(name or "(model)", *write_row(row)) for name, row in group_blocks(rows).items()]
    headers = ("module", *counts, "kMACs", "parameter kB", "activation kB")
    align = ("left", *("right" for _ in headers[1:]))
    return tabulate(lines, headers, disable_numparse=True, colalign=align)


def owner_of(path: str) -> str:
    """The module that a path is counted under."""
    match = OWNER.match(path)
    return match[0] if match else path


def group_blocks(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The same rows, with one for all blocks whose numbers are equal: their sums."""
    groups = defaultdict[tuple[str, str, Row], list[int]](list)
    for owner, row in rows.items():
        head, number, tail, _ = OWNER.fullmatch(owner).groups()  # type: ignore[union-attr]
        if number is None:
            groups[owner, "", row] = []
        else:
            groups[head, tail or "", row].append(int(number))
    return {
        f"{head}{ranges(members)}{tail}": tuple(n * max(len(members), 1) for n in row)
        for (head, tail, row), members in groups.items()
    }


def ranges(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2,5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def write_row(row: Row) -> list[str]:
    """Counts, then amounts in thousands; nothing for zero."""
    *counts, macs, parameters, activations = row
    amounts = (macs, parameters, activations)
    return [str(n or "") for n in counts] + [f"{n / 1e3:.1f}" if n else "" for n in amounts]
