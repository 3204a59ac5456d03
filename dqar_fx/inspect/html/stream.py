"""One stream of a denoiser as a page shows it: cells, distinct rows, and the time of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dqar_fx.costs.kernels import COST_KINDS
from dqar_fx.costs.report import run_lengths
from dqar_fx.inspect.summary import ranges
from dqar_fx.schedule.cells import read_rows

from .facts import describe_amounts, quantity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.costs.profile import Cost
    from dqar_fx.costs.report import Report, RowReport
    from dqar_fx.costs.rows import StreamTable
    from dqar_fx.schedule.action import Action
    from dqar_fx.schedule.cells import TableCell

    from .blocks import BlockDiffs


SHADES = 8
"""Number of shades for the age of what is read."""
NOT_CALLED = "not called: the stream's whole output is read"


@dataclass
class TextTable:
    """Texts that occur often, each kept once.

    Attributes:
        found: The position of each text, in order of first use.
    """

    found: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Give the position of a text."""
        return self.found.setdefault(text, len(self.found))


def view_stream(
    number: int, stream: StreamTable, report: Report, diffs: BlockDiffs, texts: TextTable
) -> dict[str, Any]:
    """Show one stream: the cells of its table, its distinct rows, and its chart."""
    table = stream.table
    steps = range(table.num_steps)
    rows = dict(stream.rows())
    order = {step: place for place, mine in enumerate(rows.values()) for step in mine}
    counted = {row.actions: row for row in report.rows if row.stream == number}
    costs = [counted["".join(action.letter for action in row)] for row in rows]
    explained = read_rows(table, steps, number)
    oldest = max(1, *(site.max_age for site in explained))
    sites = [
        {"path": site.site, "cells": [view_cell(c, stream, oldest) for c in site.cells]}
        for site in explained
    ]
    return {
        "number": number,
        "table": table,
        "sites": sites,
        "oldest": oldest,
        "rows": [view_row(place, row, report) for place, row in enumerate(costs)],
        "row_of_step": [order.get(step) for step in steps],
        "chart": draw_chart([costs[order[k]].costs if k in order else None for k in steps]),
        "data": {
            "sites": list(table.sites),
            "cells": [
                [describe_cell(c, site.site, stream, texts) for c in site.cells]
                for site in explained
            ],
            "rowOfStep": [order.get(step) for step in steps],
            "rows": [
                describe_row(actions, cost, report, diffs)
                for actions, cost in zip(rows, costs, strict=True)
            ],
        },
    }


def view_cell(cell: TableCell, stream: StreamTable, oldest: int) -> tuple[str, str]:
    """Give the classes and the text of a cell of the heat map."""
    if not stream.called[cell.step]:
        return "N", "-"
    letter = cell.letter if cell.letter != "." else "I"
    if cell.age is None:
        return letter, "·" if letter == "I" else letter
    shade = max(1, round(SHADES * cell.age / oldest))
    return f"{letter} a{shade}", str(cell.age)


def describe_cell(
    cell: TableCell, site: str, stream: StreamTable, texts: TextTable
) -> list[int | None]:
    """Give the text of a cell, without its place, and the step that it reads."""
    if not stream.called[cell.step]:
        return [texts.number(NOT_CALLED), None]
    _, _, said = cell.why.partition(f"({site}): ")
    return [texts.number(said), cell.source]


def view_row(place: int, row: RowReport, report: Report) -> dict[str, Any]:
    """Show a distinct row in the list of rows."""
    cost, whole = row.cost, report.computed
    return {
        "place": place,
        "actions": run_lengths(row.actions),
        "steps": len(row.steps),
        "where": ranges(row.steps, ", "),
        "macs": quantity(cost.macs),
        "megabytes": f"{cost.nbytes / 1e6:.1f}",
        "ms": f"{cost.ms:.3f}",
        "saved": f"{1 - cost.macs / whole.macs:.1%}" if whole.macs else "-",
    }


def describe_row(
    actions: tuple[Action, ...], row: RowReport, report: Report, diffs: BlockDiffs
) -> dict[str, Any]:
    """Say for the page's script what a row differs in from one that computes everything."""
    saved = diffs.saved(actions)
    return {
        "steps": ranges(row.steps, ", "),
        "delta": diffs.delta(actions),
        "saved": describe_amounts(saved),
        "ms": f"{row.cost.ms:.3f} ms predicted, {report.computed.ms:.3f} ms if all computed",
        "diffs": diffs.row(actions),
    }


WIDTH, HEIGHT = 12, 200
"""Width of a bar with its gap, and height of the highest bar, in units of the drawing."""
NUM_TICKS = 4


def draw_chart(steps: Sequence[Mapping[str, Cost] | None]) -> dict[str, Any]:
    """Draw the bars, ticks and kinds of a chart; costs of None are steps without a call."""
    known = [{} if costs is None else costs for costs in steps]
    kinds = [kind for kind in COST_KINDS if any(kind in c and c[kind].ms > 0 for c in known)]
    totals = [sum(costs[kind].ms for kind in kinds if kind in costs) for costs in known]
    top = max(totals, default=0.0) or 1.0
    return {
        "width": WIDTH * len(known),
        "height": HEIGHT,
        "kinds": kinds,
        "bars": [
            draw_bar(step, costs, kinds, top, total)
            for step, (costs, total) in enumerate(zip(known, totals, strict=True))
        ],
        "ticks": [
            {"y": HEIGHT - HEIGHT * part / NUM_TICKS, "ms": f"{top * part / NUM_TICKS:.3g}"}
            for part in range(NUM_TICKS + 1)
        ],
    }


def draw_bar(
    step: int, costs: Mapping[str, Cost], kinds: Sequence[str], top: float, total: float
) -> dict[str, Any]:
    """Draw one bar, its parts from the bottom up; ``top`` and ``total`` are milliseconds."""
    parts, y = [], float(HEIGHT)
    for kind in kinds:
        high = HEIGHT * costs[kind].ms / top if kind in costs else 0.0
        y -= high
        if high > 0:
            parts.append({"kind": kind, "y": f"{y:.2f}", "height": f"{high:.2f}"})
    told = ", ".join(f"{kind} {costs[kind].ms:.3f}" for kind in kinds if kind in costs)
    return {
        "x": step * WIDTH,
        "width": WIDTH - 2,
        "parts": parts,
        "told": f"step {step}: {total:.3f} ms ({told})",
    }
