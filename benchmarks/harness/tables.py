"""Tables that are printed, made from rows, and the notes below them."""

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tabulate import tabulate

from benchmarks.harness.timing import Spread

NOTHING = "-"
WIDTH = 95


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: What stands above it.
        value: A row's value: its attribute (``"quality.ssim"`` for one of an attribute), or
            what a function makes of the row.
        form: How a value is written, see `show`; or a function that writes it.
    """

    header: str
    value: str | Callable[[Any], Any]
    form: str | Callable[[Any], str] = ""

    def show(self, row: Any) -> str:
        """The cell of a row."""
        value = self.value(row) if callable(self.value) else look_up(row, self.value)
        return self.form(value) if callable(self.form) else show(value, self.form)


def look_up(row: Any, path: str) -> Any:
    """An attribute, or one of an attribute; None where one of them is."""
    return reduce(lambda part, name: getattr(part, name, None), path.split("."), row)


def show(value: Any, form: str = "") -> str:
    """A value in a format, a dash for None, and ``inf`` for infinity."""
    if value is None:
        return NOTHING
    if value == math.inf:
        return "inf"
    return format(value, form)


def show_megabytes(form: str = ".2f") -> Callable[[int | None], str]:
    """How bytes are written as megabytes."""
    return lambda nbytes: show(None if nbytes is None else nbytes / 1e6, form)


def show_speed(row: Any) -> str:
    """Speed with its range, or that the row failed."""
    if row.error is not None:
        return "failed"
    if row.speed_median is None:
        return NOTHING
    return f"{Spread(row.speed_median, row.speed_min, row.speed_max):.2f}"


def format_table(columns: Sequence[Column], rows: Sequence[Any], num_left: int = 1) -> str:
    """A Markdown table with names at the left and numbers at the right.

    Args:
        columns: From left to right.
        rows: From top to bottom.
        num_left: Columns of names, which come first.
    """
    headers = [column.header for column in columns]
    return make_table(
        headers, [[column.show(row) for column in columns] for row in rows], num_left
    )


def make_table(
    headers: Sequence[str], lines: Sequence[Sequence[object]], num_left: int = 1
) -> str:
    """The same of cells that are written already."""
    return tabulate(
        lines,
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left",) * num_left + ("right",) * (len(headers) - num_left),
    )


def list_failures(rows: Sequence[Any]) -> list[str]:
    """What failed, a note each."""
    return [f"{row.name} failed: {first_line(row.error)}" for row in rows if row.error]


def first_line(text: str | None) -> str:
    """The first line of a text."""
    return (text or "").partition("\n")[0]


def wrap_notes(notes: Sequence[str], indent: str = "") -> str:
    """Notes as text of `WIDTH` columns; lines of a note after its first are indented."""
    return "\n".join(textwrap.fill(note, WIDTH, subsequent_indent=indent) for note in notes)


def format_page(
    title: str, parts: Sequence[str], notes: Sequence[str], run: Mapping[str, Any]
) -> str:
    """A table with all that belongs to it as a Markdown page.

    Args:
        title: Of the page.
        parts: Tables, and what is said of them, in their order.
        notes: What the columns mean; a list below the parts.
        run: Settings that all rows share.
    """
    listed = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join(
        (f"# {title}", *parts, listed, f"Settings: `{json.dumps(dict(run))}`\n")
    )
