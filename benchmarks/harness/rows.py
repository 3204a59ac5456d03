"""Rows: what was measured, as one flat JSON object per line.

A row is a dataclass. What rows share (a machine, a setting, a geometry) is a field marked
`SHARED`, of a row or of what it shares: its entries are spread into the object of the row,
where the row's own names win. Infinity is the text ``inf``, since JSON has no such number.
Reading takes all of it back.
"""

import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from tqdm import tqdm

from benchmarks.harness.errors import InputError

Row = TypeVar("Row")

SHARED = {"shared": True}
"""``field(metadata=SHARED)``: a record or a mapping whose entries stand beside the row's."""


def to_values(row: Any, *others: Any, also: Sequence[str] = ()) -> dict[str, Any]:
    """The flat object of a row.

    Args:
        row: A dataclass.
        *others: Records or mappings that all rows share; what is in the row already stays.
        also: Properties of the row that are written, too.
    """
    values: dict[str, Any] = msgspec.to_builtins(row)
    values |= {name: getattr(row, name) for name in also}
    values = spread(type(row), values)
    for record in map(msgspec.to_builtins, others):
        values = values | record | values  # what is there stays, and stays first
    return name_infinite(values)


def spread(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a record with those of its shared records, and theirs, beside them."""
    for name, empty in list_shared(kind).items():
        inner, record = values.pop(name), find_record(kind, name)
        if inner is None:
            inner = empty
        elif record is not None:
            inner = spread(record, inner)
        values = values | inner | values
    return values


def list_shared(kind: type) -> dict[str, dict[str, None]]:
    """Fields that are shared, and the names in each where it is a record."""
    return {
        each.name: dict.fromkeys(each.name for each in fields(record)) if record else {}
        for each in fields(kind)
        if "shared" in each.metadata
        for record in [find_record(kind, each.name)]
    }


def find_record(kind: type, name: str) -> Any:
    """The dataclass of a field, also where it may be None; None for other types."""
    hint = get_type_hints(kind)[name]
    return next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)


def name_infinite(value: Any) -> Any:
    """The same with the text ``inf`` for infinity, at any depth."""
    if isinstance(value, Mapping):
        return {name: name_infinite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [name_infinite(inner) for inner in value]
    return "inf" if value == math.inf else value


def to_line(row: Any, *others: Any, also: Sequence[str] = ()) -> str:
    """The line of a row; see `to_values`."""
    return f"{json.dumps(to_values(row, *others, also=also), allow_nan=False)}\n"


def write_rows(
    rows: Iterable[Any], path: Path, *others: Any, also: Sequence[str] = ()
) -> None:
    """Write one line per row in the place of what the file holds; see `to_values`."""
    path.write_text("".join(to_line(row, *others, also=also) for row in rows))


def append_rows(
    rows: Iterable[Any], path: Path, *others: Any, also: Sequence[str] = ()
) -> None:
    """Write one line per row behind those of the file; see `to_values`."""
    with path.open("a") as file:
        file.write("".join(to_line(row, *others, also=also) for row in rows))


def from_values(kind: type[Row], values: Mapping[str, Any]) -> Row:
    """The row of a flat object, with its records; one of which nothing is known is None.

    Raises:
        msgspec.ValidationError: It has other fields.
    """
    records = {
        name: from_values(find_record(kind, name), values)
        for name, names in list_shared(kind).items()
        if any(values.get(each) is not None for each in names)
    }
    missing = dict.fromkeys(list_shared(kind)) | records
    return msgspec.convert({**values, **missing}, kind, strict=False, from_attributes=True)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file; none if there is no file. Lines with other fields are left out.

    Raises:
        InputError: A line is no JSON object.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            values = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: no JSON object ({error}); delete the line"
            ) from None
        try:
            rows.append(from_values(kind, values))
        except msgspec.ValidationError:
            continue  # another version of the command wrote it
    return rows


@contextmanager
def noted_failure(name: str, note: Callable[[str], object]) -> Iterator[None]:
    """Let what is inside fail: the error is shown and noted, and the others go on."""
    try:
        yield
    except Exception as error:
        note(f"{type(error).__name__}: {error}")
        tqdm.write(f"{name} failed:", file=sys.stderr)
        traceback.print_exc()
