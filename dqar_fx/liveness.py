"""Which outputs of the conditioning are read: at a step, and at any step of a table.

A row whose sites all reuse reads no shift and no scale of theirs. A stage that is evaluated
for one step gives what that step reads; one that is evaluated once for a trajectory gives what
any of its steps reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .plan import bind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .plan import BoundCall, Plan, Stage, Variants

Live = tuple[bool, ...]
"""Per output of a stage, whether it is read."""


@dataclass(frozen=True)
class Needs:
    """What a step reads of the conditioning.

    Attributes:
        step: Per stage, what it reads.
        trajectory: Per stage, what any step of its table reads, this one included.
    """

    step: tuple[Live, ...]
    trajectory: tuple[Live, ...]


def find_live(plan: Plan, actions: Sequence[int], variants: Variants) -> tuple[Live, ...]:
    """Per stage, which of its outputs a row reads, itself or through another stage.

    Args:
        plan: Of the step.
        actions: The row.
        variants: As for `bind`, by the plan.
    """
    read, found = read_numbers(plan, actions, variants), list[Live]()
    for stage in reversed(plan.stages):
        live = tuple(number in read for number in stage.outputs)
        inner = read_numbers(restrict(stage, live), (), variants)
        pairs = zip(stage.plan.inputs, stage.inputs, strict=True)
        read |= {outer for number, outer in pairs if number in inner}
        found.append(live)
    return tuple(reversed(found))


def read_numbers(plan: Plan, actions: Sequence[int], variants: Variants) -> set[int]:
    """Numbers that the calls of a row read, and those that it gives."""
    calls: list[BoundCall] = bind(plan, actions, variants(plan), lambda _: None)
    return set(plan.outputs).union(*(call.inputs for call in calls))


def restrict(stage: Stage, live: Live) -> Plan:
    """A stage's plan, giving live outputs only."""
    pairs = zip(stage.plan.outputs, live, strict=True)
    return replace(stage.plan, outputs=tuple(number for number, is_live in pairs if is_live))


def unite(rows: Iterable[tuple[Live, ...]]) -> tuple[Live, ...]:
    """Per stage, what any of several rows reads."""
    return tuple(
        tuple(any(each) for each in zip(*lives, strict=True))
        for lives in zip(*rows, strict=True)
    )


class Liveness:
    """What rows read, each looked at once.

    Args:
        plan: Of the step.
        rows: The distinct rows of the table.
        variants: As for `bind`, by the plan.
    """

    def __init__(self, plan: Plan, rows: Sequence[Sequence[int]], variants: Variants) -> None:
        self._plan, self._rows, self._variants = plan, rows, variants
        self._known: dict[tuple[int, ...], tuple[Live, ...]] = {}
        self._of_table: tuple[Live, ...] | None = None

    def of_row(self, actions: Sequence[int]) -> tuple[Live, ...]:
        """Per stage, what a row reads."""
        key = tuple(map(int, actions))
        if not self._plan.stages:
            return ()
        if key not in self._known:
            self._known[key] = find_live(self._plan, key, self._variants)
        return self._known[key]

    def of_table(self) -> tuple[Live, ...]:
        """Per stage, what any row of the table reads."""
        if self._of_table is None:
            self._of_table = unite(self.of_row(row) for row in self._rows)
        return self._of_table

    def needs(self, actions: Sequence[int]) -> Needs:
        """What a row reads, which need not be one of the table: sites may start cold."""
        mine = self.of_row(actions)
        return Needs(mine, unite((mine, self.of_table())))
