"""Tables of sites in a model that is not called at some steps.

Where the whole output is read from what was kept, nothing inside is evaluated. The table of
the sites leaves those steps out: no site stores there, and what one kept before grows older.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.schedule.action import Action
from dqar_fx.schedule.rules import AnyRunRule
from dqar_fx.schedule.table import find_read, no_weights
from dqar_fx.schedule.written_out import WrittenActions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from dqar_fx.schedule.rules import Mask, Moment, Rule
    from dqar_fx.schedule.run import RunShape
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

OUTPUT = "denoiser (unconditional)"
"""Path of the site that is the whole output."""


def resolve_inside(
    schedule: Schedule,
    sites: tuple[str, ...],
    around: tuple[tuple[int, ...], ...],
    skipped: Mask,
) -> BranchTable:
    """The table of sites in a model that is not called at some steps.

    There it says COMPUTE, which is what a site does if the call cannot be left out after all.
    """
    if isinstance(schedule.rule, WrittenActions):
        table = schedule.resolve(sites, around)
        actions = without_calls(table, skipped, is_strict=schedule.rule.strict)
        reason = CellReason(table, tuple(skipped))
        left = replace(table, actions=actions, reason=reason, weights=no_weights())
        return replace(left, weights=weights_of_same(table, left))
    rule = WholeModelRule(schedule.aged_rule(), tuple(skipped))
    whole = replace(schedule, rule=rule, max_age=None)
    outer = tuple((*each, len(sites)) for each in around or ((),) * len(sites))
    table = whole.resolve((*sites, OUTPUT), (*outer, ()))
    actions = table.actions[:, :-1].copy()
    actions[skipped] = Action.COMPUTE
    return replace(
        table,
        actions=actions,
        sites=sites,
        max_age=schedule.max_age,
        reason=CellReason(table, tuple(skipped)),
        orders=table.orders[:, :-1],
        around=around,
    )


def without_calls(table: BranchTable, skipped: Mask, *, is_strict: bool) -> NDArray[np.int8]:
    """Written-out actions, stored where the model is called and a later one reads it.

    Args:
        table: As if it were called at each step.
        skipped: Steps without a call.
        is_strict: Whether only what is written as STORE may be stored.
    """
    called = ~skipped[:, None]
    reads = table.is_read & called
    computes = np.isin(table.actions, (Action.COMPUTE, Action.STORE)) & called
    stores = (table.actions == Action.STORE) & called if is_strict else computes
    actions = np.where(called & ~computes, table.actions, Action.COMPUTE).astype(np.int8)
    actions[stores & find_read(stores, reads, table.points)] = Action.STORE
    return actions


def weights_of_same(table: BranchTable, other: BranchTable) -> NDArray[np.float64]:
    """A table's weights where another one reads the same steps; elsewhere the method's."""
    if not table.weights.size:
        return table.weights
    pairs = (zip(*rows, strict=True) for rows in zip(table.kept, other.kept, strict=True))
    same = np.array([[a == b for a, b in row] for row in pairs])
    known = np.where(same[..., None], table.weights, 0.0)
    return known[..., : other.history]


@dataclass(frozen=True)
class WholeModelRule(AnyRunRule):
    """A rule for the sites of a model, and, as the last one, for the model as a whole.

    Attributes:
        rule: The rule for the sites.
        skipped: Steps at which the whole is not called.
    """

    rule: Rule
    skipped: tuple[bool, ...]

    def for_run(self, run: RunShape) -> WholeModelRule:
        """Give the same with the rule inside for a run."""
        return replace(self, rule=self.rule.for_run(run))

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow sites as the rule inside does, and the whole where it is not called."""
        return np.append(self.rule.may_reuse(inside(moment)), self.skipped[moment.step])

    def why(self, moment: Moment, site: int) -> str:
        """Give the reason of the rule inside."""
        return self.rule.why(inside(moment), site)

    def notice_for(self, num_steps: int) -> str:
        """Give what the rule inside has to tell."""
        return self.rule.notice_for(num_steps)

    def refuse_other_model(self, model: nn.Module) -> None:
        """Raise if the rule inside refuses the model."""
        self.rule.refuse_other_model(model)


def inside(moment: Moment) -> Moment:
    """Give a moment without its last site, which stands for the whole output."""
    return replace(moment, sites=moment.sites[:-1], age=moment.age[:-1])


@dataclass(frozen=True)
class CellReason:
    """Why a cell is what it is, where some steps are not called.

    Attributes:
        table: The table that knows the reasons.
        skipped: Steps without a call.
    """

    table: BranchTable
    skipped: tuple[bool, ...]

    def __call__(self, table: BranchTable, step: int, site: int) -> str:
        """Give the reason."""
        if self.skipped[step]:
            return "not called: the kept output of the whole denoiser is read"
        known = self.table.reason
        return "as given" if known is None else known(self.table, step, site)
