"""The rows of a run on disk: whole lines, each case once, whatever interrupts the run.

A row is appended, with one write, the moment it is known. What a killed process may have left
is half a line at the end: it is cut off before anybody reads or writes. Who writes holds a
lock, which the system lets go when a process ends, however it ends.
"""

import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accelerator.cases import Row
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import Machine
from benchmarks.harness.rows import append_rows, read_rows

ROWS, BEGUN = "rows.jsonl", "begun.jsonl"
SAME = ("device", "processor", "torch", "dqar_fx", "commit")
"""What rows of one run have in common, of the machine."""


@dataclass(frozen=True)
class Ledger:
    """A folder with rows, and with the names of cases that were begun."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file of the rows."""
        return self.folder / ROWS

    def read(self) -> list[Row]:
        """All rows, the first one of each case."""
        found = read_rows(self.path, Row)
        return list({row.key: row for row in reversed(found)}.values())[::-1]

    def add(self, row: Row) -> None:
        """Append a row; it is with the system when this returns."""
        append_rows([row], self.path)

    def begin(self, key: str) -> None:
        """Note that a case begins."""
        with (self.folder / BEGUN).open("a") as file:
            file.write(f"{json.dumps(key)}\n")

    def read_begun(self) -> list[str]:
        """Names of cases as they were begun, one for each time."""
        path = self.folder / BEGUN
        return (
            [json.loads(line) for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def count_cut(self) -> Counter[str]:
        """How often each case was begun that has no row."""
        finished = {row.key for row in self.read()}
        return Counter(key for key in self.read_begun() if key not in finished)

    @contextmanager
    def locked(self, *, waits: bool) -> Iterator[None]:
        """Alone with the rows while inside, and with whole lines only.

        Args:
            waits: Whether to wait for another process that is about to end.

        Raises:
            InputError: Another process has them, and nobody waits.
        """
        with self.path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except OSError:
                raise InputError(
                    f"another process writes to {self.path}: wait for it, or give "
                    "another --out"
                ) from None
            for name in (ROWS, BEGUN):
                cut_torn_line(self.folder / name)
            yield

    def refuse_other_run(self, scale: str, machine: Machine) -> None:
        """Raise unless all rows are of this scale and machine.

        Raises:
            InputError: One is of another.
        """
        for row in self.read():
            there, here = (
                describe_run(*each) for each in ((row.scale, row.machine), (scale, machine))
            )
            if there != here:
                raise InputError(
                    f"{self.path} is of another run: {list_differences(there, here)}. Give "
                    "another --out, or delete it"
                )


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last end of a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def describe_run(scale: str, machine: Machine) -> dict[str, Any]:
    """What rows of one run have in common."""
    return {"scale": scale, **{name: getattr(machine, name) for name in SAME}}


def list_differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs, in words."""
    names: Sequence[str] = [name for name in there if there[name] != here[name]]
    return ", ".join(f"{name} {there[name]} there, {here[name]} here" for name in names)
