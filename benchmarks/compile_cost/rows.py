"""Rows: what each process measured, one line of JSON each, on disk as soon as it is known."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.compile_cost.points import Point
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import Machine

PHASES = ("cold", "warm")
"""With an empty cache; with the one that the cold process has left."""


@dataclass(frozen=True)
class Measured:
    """What one process measured.

    Attributes:
        transform_s: Capture, passes and table, nothing compiled; None if untransformed.
        compile_s: That, and the steps that compiled something less the same steps again.
        other_s: The other steps of the first trajectory less the same steps again.
        run_s: The second trajectory.
        graphs: Graphs compiled in the first trajectory.
        breaks: Graph breaks.
        recompiles: Graphs compiled in the second trajectory.
        cache_hits: Graphs that were found in the cache on disk.
        distinct_rows: Of the branch table; 1 for the untransformed model.
    """

    transform_s: float | None
    compile_s: float
    other_s: float
    run_s: float
    graphs: int
    breaks: int
    recompiles: int
    cache_hits: int
    distinct_rows: int


@dataclass(frozen=True)
class Row:
    """One process.

    Attributes:
        point: What it compiled.
        phase: One of `PHASES`.
        repeat: Which repeat, from 0.
        process_s: Time of the whole process.
        measured: What it measured; None if it failed.
        error: What went wrong, or None.
        machine: Where.
    """

    point: Point
    phase: str
    repeat: int
    process_s: float
    measured: Measured | None
    error: str | None
    machine: Machine

    def to_json(self) -> str:
        """One flat JSON object."""
        values = asdict(self)
        measured = values.pop("measured") or dict.fromkeys(names_of(Measured))
        values |= values.pop("point") | measured | values.pop("machine")
        values |= values.pop("geometry")
        return json.dumps(values)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Row":
        """The row of a JSON object.

        Raises:
            KeyError: It has other fields.
        """
        point = {name: values[name] for name in ("kind", "steps", "ramp")}
        return cls(
            Point(geometry=pick(Geometry, values), **point),
            values["phase"],
            values["repeat"],
            values["process_s"],
            None if values["error"] else pick(Measured, values),
            values["error"],
            pick(Machine, values),
        )

    def is_of(self, point: Point, repeat: int, machine: Machine) -> bool:
        """Whether it is a measurement of that, there, of the same sources."""
        same = (self.point, self.repeat) == (point, repeat)
        sources = (self.machine.commit, self.machine.dirty) == (machine.commit, machine.dirty)
        return same and sources and name_place(self.machine) == name_place(machine)


def name_place(machine: Machine) -> tuple[object, ...]:
    """What of a machine makes times comparable."""
    return (machine.processor, machine.cores, machine.threads, machine.torch)


def names_of(record: Any) -> list[str]:
    """Names of a dataclass's fields."""
    return [field.name for field in fields(record)]


def pick(record: Any, values: dict[str, Any]) -> Any:
    """A dataclass of those values that it has fields for."""
    return record(**{name: values[name] for name in names_of(record)})


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file. Lines with other fields are left out.

    Raises:
        InputError: A line is no JSON object.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    found = (read_row(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1))
    return [row for row in found if row is not None]


def read_row(line: str, where: str) -> Row | None:
    """The row of a line; None if another version of this command wrote it.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        return Row.from_values(dict(json.loads(line)))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: no JSON object ({error}); delete the line") from None
    except KeyError:
        return None


def append_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows behind those of a file."""
    with path.open("a") as file:
        file.write("".join(f"{row.to_json()}\n" for row in rows))
