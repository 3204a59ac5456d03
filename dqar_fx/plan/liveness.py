"""Which outputs of the conditioning are read: at a step, and at any step of a table.

A row whose sites all reuse reads no shift and no scale of theirs. In eager mode a stage that
is evaluated for one step gives what that step reads. One that is evaluated once for a
trajectory gives what any of its steps reads; so does one that is compiled, which would else be
compiled once for each row: it is left out where a step reads none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .plan import select_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .plan import Plan, Stage, Variants

Live = tuple[bool, ...]
"""Per output of a stage, whether it is read."""


@dataclass(frozen=True)
class Needs:
    """What a step reads of the conditioning.

    Attributes:
        step: Per stage, what is to be given for it; nothing where it reads nothing.
        trajectory: Per stage, what any step of its table reads, this one included.
    """

    step: tuple[Live, ...]
    trajectory: tuple[Live, ...]


def find_live(
    plan: Plan,
    actions: Sequence[int],
    variants: Variants,
    wholes: Sequence[Live] | None = None,
) -> tuple[Live, ...]:
    """Find, per stage, which of its outputs a row reads, itself or through another stage.

    Args:
        plan: The plan of the step.
        actions: The row, one action per column of the branch table.
        variants: Gives, for a plan, what `select_calls` takes as ``specialised``.
        wholes: Per stage, what it gives if any of it is read; None for what is read alone.
    """
    read, found = read_numbers(plan, actions, variants), list[Live]()
    for k, stage in reversed(list(enumerate(plan.stages))):
        live = tuple(number in read for number in stage.outputs)
        if wholes is not None and any(live):
            live = wholes[k]
        inner = read_numbers(restrict(stage, live), (), variants)
        pairs = zip(stage.plan.inputs, stage.inputs, strict=True)
        read |= {outer for number, outer in pairs if number in inner}
        found.append(live)
    return tuple(reversed(found))


def read_numbers(plan: Plan, actions: Sequence[int], variants: Variants) -> set[int]:
    """Collect the numbers of what the calls of a row read, and of what the plan gives."""
    calls = select_calls(plan, actions, variants(plan))
    return set(plan.outputs).union(*(call.inputs for call in calls))


def restrict(stage: Stage, live: Live) -> Plan:
    """Make the plan of a stage that gives its live outputs only."""
    pairs = zip(stage.plan.outputs, live, strict=True)
    return replace(stage.plan, outputs=tuple(number for number, is_live in pairs if is_live))


def unite(rows: Iterable[tuple[Live, ...]]) -> tuple[Live, ...]:
    """Find, per stage, what any of several rows reads."""
    return tuple(
        tuple(any(each) for each in zip(*lives, strict=True))
        for lives in zip(*rows, strict=True)
    )


class Liveness:
    """Finds what rows read of the conditioning, each row once.

    Args:
        plan: The plan of the step.
        rows: The distinct rows of the table.
        variants: Gives, for a plan, what `select_calls` takes as ``specialised``.
        is_compiled: Whether a stage is given whole, or not at all.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Sequence[Sequence[int]],
        variants: Variants,
        *,
        is_compiled: bool,
    ) -> None:
        self._plan, self._rows, self._variants = plan, rows, variants
        self._is_compiled = is_compiled
        self._needs: dict[tuple[int, ...], Needs] = {}
        self._known: dict[tuple[int, ...], tuple[Live, ...]] = {}
        self._of_table: tuple[Live, ...] | None = None

    def for_rows(self, rows: Sequence[Sequence[int]]) -> Liveness:
        """Do the same for a table of other rows; what a row reads is found once for both."""
        other = Liveness(self._plan, rows, self._variants, is_compiled=self._is_compiled)
        other._known = self._known
        return other

    def of_row(self, actions: Sequence[int]) -> tuple[Live, ...]:
        """Find, per stage, what a row reads."""
        key = tuple(map(int, actions))
        if not self._plan.stages:
            return ()
        if key not in self._known:
            self._known[key] = find_live(self._plan, key, self._variants)
        return self._known[key]

    def of_table(self) -> tuple[Live, ...]:
        """Find, per stage, what any row of the table reads."""
        if self._of_table is None:
            self._of_table = unite(self.of_row(row) for row in self._rows)
        return self._of_table

    def needs(self, actions: Sequence[int]) -> Needs:
        """Find what a row needs, which may be none of the table's: sites may start cold."""
        key = tuple(map(int, actions))
        if key not in self._needs:
            step = self.of_row(key)
            trajectory = unite((step, self.of_table()))
            if self._is_compiled:
                step = find_live(self._plan, key, self._variants, trajectory)
            self._needs[key] = Needs(step, trajectory)
        return self._needs[key]
