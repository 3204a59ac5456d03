"""From a schedule whose number of steps is known to a branch table: decide, then mark stores.

A cell that is read later becomes a STORE; what is written out stands as it is, unless it was
written for another number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import ScheduleError

from .action import LETTERS, Action
from .forecast import points_of
from .rules import AgeLimit, Moment
from .table import READING, BranchTable, find_covered, find_read, no_weights
from .written_out import WrittenActions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .rules import Rule
    from .run import RunShape
    from .table import Around


@dataclass(frozen=True)
class TableMaker:
    """Makes the branch tables of a schedule, whose facts are told there.

    Attributes:
        rule: The rule as it is for the run.
        run: What is known of the run.
        max_age: The most steps that a kept output may be old, or None.
        order: Order of the forecast that replaces reuse; 0 for plain reuse.
        method: How to forecast.
        resample: Whether the tables say that they may be resampled.
        damping: How much forecasts are damped.
    """

    rule: Rule
    run: RunShape
    max_age: int | None
    order: int
    method: str
    resample: bool
    damping: float

    def make(self, paths: tuple[str, ...], around: Around) -> BranchTable:
        """Return the verified table; arguments and errors are those of `Schedule.resolve`."""
        rule, weights, noise = self.rule, no_weights(), self.run.noise
        if isinstance(rule, WrittenActions):
            rule.spread(len(paths))  # refuses another number of sites
            noise = noise or rule.noise
            if rule.weights and not self.order:
                weights = np.array(rule.weights)
                if weights.shape[1] == 1:  # written for all sites, as letters may be
                    weights = weights.repeat(len(paths), axis=1)
        if isinstance(rule, WrittenActions) and rule.oldest is None:
            actions = self.resolve_written(rule, len(paths), around)
        else:
            actions = self.mark_stores(self.decide(paths, around))
        return BranchTable(
            actions,
            paths,
            max_age=self.max_age,
            reason=self.reason,
            orders=self.orders_of(actions),
            method=self.method,
            around=tuple(around),
            weights=weights,
            noise=noise,
            resample=self.resample,
            calls=self.run.calls,
            damping=self.damping,
        )

    def orders_of(self, actions: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the order that a forecast has in each cell, int8 ``[steps, sites]``."""
        orders = np.full_like(actions, self.order)
        if isinstance(self.rule, WrittenActions) and not self.order:
            orders[:] = self.rule.orders
        return orders

    def mark_stores(self, actions: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the actions with each COMPUTE that a later cell reads as a STORE.

        A REUSE becomes a FORECAST if the schedule as a whole forecasts.
        """
        marked = actions.copy()
        if self.order:
            marked[actions == Action.REUSE] = Action.FORECAST
        is_read = np.isin(marked, READING)
        points = np.vectorize(partial(points_of, self.method))(self.orders_of(actions))
        points = np.where(marked == Action.FORECAST, points, is_read)  # reuse reads one
        computed = marked == Action.COMPUTE
        marked[computed & find_read(computed, is_read, points)] = Action.STORE
        return marked

    def decide(self, sites: tuple[str, ...], around: Around) -> NDArray[np.int8]:
        """Return the rule's actions, int8 ``[steps, sites]``, without stores.

        A cell reuses where the rule allows it and its kept output is young enough, is covered
        where a site around it reuses, and computes otherwise.

        Raises:
            ScheduleError: The rule gives a mask of another shape than ``[sites]``.
        """
        run = self.run
        actions = np.zeros((run.num_rows, len(sites)), np.int8)
        computed = np.zeros(len(sites), np.int64)
        for step in range(1, run.num_rows):
            moment = Moment(step, run.num_rows, sites, step - computed, run.call_of(step))
            reuse = self.rule.may_reuse(moment)
            if reuse.shape != computed.shape:
                raise ScheduleError(
                    f"{self.rule} gave a mask of shape {list(reuse.shape)} at step {step}, "
                    f"expected one value for each of {len(sites)} sites"
                )
            if self.max_age is not None:
                reuse = reuse & (moment.age <= self.max_age)
            actions[step, reuse] = Action.REUSE
            covered = find_covered(reuse[None], around)[0]
            actions[step, covered] = Action.COVERED
            computed[~reuse & ~covered] = step
        if isinstance(self.rule, WrittenActions):  # whose orders are 0 where it reuses
            is_forecast = (actions == Action.REUSE) & (self.orders_of(actions) > 0)
            actions[is_forecast] = Action.FORECAST
        return actions

    def reason(self, table: BranchTable, step: int, site: int) -> str:
        """Return why a cell of the schedule's table is what it is."""
        rule = self.rule
        if step == 0 and not (isinstance(rule, WrittenActions) and rule.oldest is None):
            return "nothing is kept yet"
        call = self.run.call_of(step)
        moment = Moment(step, table.num_steps, table.sites, table.ages[step], call)
        is_refresh = not table.is_read[step, site] and rule.may_reuse(moment)[site]
        if is_refresh and self.max_age is not None:
            return AgeLimit(self.max_age).why(moment, site)
        return rule.why(moment, site)

    def resolve_written(
        self, rule: WrittenActions, num_sites: int, around: Around
    ) -> NDArray[np.int8]:
        """Return written-out actions, int8 ``[steps, sites]``, with their stores."""
        to_number = np.vectorize(LETTERS.get, otypes=[np.int8])
        actions: NDArray[np.int8] = to_number(rule.spread(num_sites))
        if rule.strict:
            return actions
        actions[find_covered(np.isin(actions, READING), around)] = Action.COVERED
        return self.mark_stores(actions)
