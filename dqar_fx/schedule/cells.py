"""A branch table cell by cell: what each site does, why, and how old what it reads is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .action import Action
from .table import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .table import BranchTable


@dataclass(frozen=True)
class TableCell:
    """What one site does at one step.

    Attributes:
        step: The step.
        action: Name of the `Action`.
        source: The step whose output the site reads; None if it reads none.
        age: How many steps ago that was; None if it reads none.
        why: All of this in words, with the schedule's reason.
    """

    step: int
    action: str
    source: int | None
    age: int | None
    why: str

    @property
    def letter(self) -> str:
        """The action's letter, as in written-out rows."""
        return Action[self.action].letter

    def __str__(self) -> str:
        return self.why + (f" ({self.age} steps old)" if self.age is not None else "")


@dataclass(frozen=True)
class SiteRow:
    """What one site does, step after step.

    Attributes:
        stream: 0, or 1 for guidance's unconditional stream.
        site: Module path.
        cells: One cell per step, in order of steps.
    """

    stream: int
    site: str
    cells: tuple[TableCell, ...]

    @property
    def actions(self) -> str:
        """The letters of the site's actions, one per step."""
        return "".join(cell.letter for cell in self.cells)

    @property
    def max_age(self) -> int:
        """Age in steps of the oldest output that the site reads; 0 if it reads none."""
        return max((cell.age or 0 for cell in self.cells), default=0)

    def __str__(self) -> str:
        stream = " (unconditional)" if self.stream else ""
        if len(self.cells) == 1:
            return f"{self.cells[0]}{stream}"
        return f"{self.site}{stream}  {self.actions}  oldest read {self.max_age} steps"


def read_cell(table: BranchTable, step: int, column: int) -> TableCell:
    """Return one cell of a table, with its explanation."""
    source = int(table.sources[step, column])
    is_read = source != NEVER
    return TableCell(
        step=step,
        action=Action(table.actions[step, column]).name,
        source=source if is_read else None,
        age=step - source if is_read else None,
        why=table.why(step, column),
    )


def read_rows(
    table: BranchTable, steps: Iterable[int], stream: int = 0
) -> tuple[SiteRow, ...]:
    """Return the chosen steps of a table, one row of explained cells per site."""
    chosen = list(steps)
    return tuple(
        SiteRow(stream, site, tuple(read_cell(table, step, column) for step in chosen))
        for column, site in enumerate(table.sites)
    )
