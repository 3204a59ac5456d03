"""Schedules: rules that say, for each step and site, whether a kept output may be reused.

`Schedule.resolve` turns a rule into a verified `BranchTable`: it refreshes what grows older
than ``max_age``, and marks as STORE exactly those computations that a later REUSE reads.
Schedules combine: ``a & b`` reuses where both do, ``a | b`` where one does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .action import LETTERS, Action
from .forecast import MAX_ORDER, METHODS, points_of
from .rules import AgeLimit, AllOf, AnyOf, IntervalRule, LinearRule, Moment
from .table import READING, BranchTable, find_covered, find_read, no_weights
from .written_out import WrittenActions, read_letters, read_orders, read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from .rules import Rule
    from .table import Around


@dataclass(frozen=True)
class Schedule:
    """How a trajectory of ``num_steps`` steps reuses attention.

    Attributes:
        num_steps: Steps of the trajectory.
        rule: Decides which cells may reuse.
        max_age: The most steps that a kept output may be old; older ones are computed again.
            None for no limit.
        order: Order of the forecast that replaces reuse; 0 for plain reuse.
        method: How to forecast, a name of `forecast.METHODS`.
        sites: The sites that the schedule is meant for, as for ``transform``; None for any.

    Raises:
        ScheduleError: ``num_steps`` or ``max_age`` is no integer or less than 1, or actions
            are written out for another number of steps.
    """

    num_steps: int
    rule: Rule
    max_age: int | None = None
    order: int = 0
    method: str = "taylor"
    sites: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_at_least(1, num_steps=self.num_steps)
        if self.max_age is not None:
            check_at_least(1, max_age=self.max_age)
        if isinstance(self.rule, WrittenActions) and len(self.rule.letters) != self.num_steps:
            raise ScheduleError(
                f"actions are written out for {len(self.rule.letters)} steps but num_steps is "
                f"{self.num_steps}"
            )

    @classmethod
    def linear(
        cls,
        num_steps: int,
        warmup: int = 5,
        *,
        full_from: int | None = None,
        max_age: int | None = None,
    ) -> Schedule:
        """Spread reuse from shallow to deep sites after a warm-up, as the report does.

        Args:
            num_steps: Steps of the trajectory.
            warmup: How many first steps compute everything.
            full_from: Step from which all sites reuse; by default half-way between the end
                of the warm-up and the end of the trajectory.
            max_age: The most steps that a kept output may be old.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            DQAR report, "Layer scheduling strategy".
        """
        check_at_least(1, num_steps=num_steps, warmup=warmup)
        late = warmup + max(num_steps - warmup, 0) // 2 if full_from is None else full_from
        check_at_least(warmup, full_from=late)
        return cls(num_steps, LinearRule(warmup, late), max_age)

    @classmethod
    def interval(
        cls, num_steps: int, every: int, *, warmup: int = 1, max_age: int | None = None
    ) -> Schedule:
        """Compute at each ``every``-th step after the warm-up, reuse between.

        Args:
            num_steps: Steps of the trajectory.
            every: Distance between computed steps; 1 computes at each step.
            warmup: How many first steps compute everything.
            max_age: The most steps that a kept output may be old.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            FORA, arXiv 2407.01425; Pyramid Attention Broadcast, arXiv 2408.12588.
        """
        check_at_least(1, num_steps=num_steps, every=every, warmup=warmup)
        return cls(num_steps, IntervalRule(every, warmup), max_age)

    @classmethod
    def compute_all(cls, num_steps: int) -> Schedule:
        """Compute everything at every step, as the untransformed model does."""
        return cls(num_steps, IntervalRule(every=1, warmup=num_steps))

    @classmethod
    def from_actions(
        cls,
        actions: str | Sequence[str] | ArrayLike,
        *,
        max_age: int | None = None,
        orders: ArrayLike | None = None,
        method: str = "taylor",
        weights: ArrayLike | None = None,
    ) -> Schedule:
        """Write a schedule out, action by action.

        Args:
            actions: A text such as ``"CCRRCRRC"``, one letter per step, for all sites; several
                texts (or lines), one per site; a bool array, True for reuse; or an array of
                `Action`, ``[steps, sites]`` or ``[steps]``. In texts of C and R and in bool
                arrays a computation is stored where a later step reads it; texts with an S
                and arrays of `Action` are taken as they stand.
            max_age: The most steps that a kept output may be old. Reading an older one is an
                error when the table is made, since nothing written out is changed.
            orders: Orders of the forecasts (F), one for all or ``[steps, sites]``.
            method: How to forecast, see `forecast`.
            weights: Weights of the forecasts, ``[steps, sites, points]``, in place of the
                method's; see `BranchTable`.

        Raises:
            ScheduleError: The actions, orders or weights have none of these shapes, or a
                letter or number is no action.
        """
        letters, strict = read_letters(actions)
        rule = WrittenActions(letters, strict, read_orders(orders), read_weights(weights))
        return cls(len(letters), rule, max_age, method=method)

    def forecast(self, order: int = 1, method: str = "taylor") -> Schedule:
        """Return the same schedule with forecasts in place of reuse.

        Args:
            order: 1, 2 or 3: a line, a parabola or a cubic through the last computed outputs.
            method: ``"taylor"`` (finite differences), ``"chebyshev"`` (the interpolating
                polynomial, in Chebyshev's basis) or ``"least_squares"`` (a polynomial fitted
                to one more point than it needs).

        Raises:
            ScheduleError: The order is out of range, or the method is unknown.

        Source:
            TaylorSeer, arXiv 2503.06923.
        """
        check_at_least(1, order=order)
        if order > MAX_ORDER or method not in METHODS:
            raise ScheduleError(
                f"a forecast has an order of 1 to {MAX_ORDER} and one of the methods "
                f"{', '.join(METHODS)}; found order {order}, method {method!r}"
            )
        return replace(self, order=order, method=method)

    def __and__(self, other: Schedule) -> Schedule:
        """Reuse where both schedules do."""
        return self._combined(other, AllOf)

    def __or__(self, other: Schedule) -> Schedule:
        """Reuse where at least one of the schedules does."""
        return self._combined(other, AnyOf)

    def _combined(self, other: Schedule, how: type[AllOf | AnyOf]) -> Schedule:
        if not isinstance(other, Schedule):
            return NotImplemented
        if other.num_steps != self.num_steps:
            raise ScheduleError(
                f"schedules of {self.num_steps} and {other.num_steps} steps cannot be combined"
            )
        if (self.order, self.method) != (other.order, other.method):
            raise ScheduleError(
                "combine schedules first, then forecast: (a & b).forecast(...)"
            )
        known = {each.sites for each in (self, other)} - {None}
        if len(known) > 1:
            raise ScheduleError(
                f"schedules for sites={self.sites!r} and {other.sites!r} cannot be combined: "
                "replace(schedule, sites=None), and give the sites to transform"
            )
        rule = how((self.aged_rule(), other.aged_rule()))
        sites = next(iter(known), None)
        return Schedule(self.num_steps, rule, None, self.order, self.method, sites)

    def aged_rule(self) -> Rule:
        """Return the rule with ``max_age`` as a part of it."""
        return (
            self.rule if self.max_age is None else AllOf((self.rule, AgeLimit(self.max_age)))
        )

    def resolve(self, sites: Sequence[str], around: Around = ()) -> BranchTable:
        """Work out the branch table for the sites of a model.

        Args:
            sites: Module paths, in execution order.
            around: For each site, the columns of the sites that contain it; empty if none
                does.

        Raises:
            ScheduleError: The rule is written out for another number of sites, or the table
                is invalid, see `BranchTable`.
        """
        paths, rule = tuple(str(path) for path in sites), self.rule
        if isinstance(rule, WrittenActions):
            actions = self.resolve_written(rule, len(paths), around)
        else:
            actions = self.mark_stores(self.decide(paths, around))
        weights = no_weights()
        if isinstance(rule, WrittenActions) and rule.weights and not self.order:
            weights = np.array(rule.weights)
        facts = (self.max_age, self.reason, self.orders_of(actions), self.method)
        return BranchTable(actions, paths, *facts, tuple(around), weights)

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
        actions = np.zeros((self.num_steps, len(sites)), np.int8)
        computed = np.zeros(len(sites), np.int64)
        for step in range(1, self.num_steps):
            moment = Moment(step, self.num_steps, sites, step - computed)
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
        return actions

    def reason(self, table: BranchTable, step: int, site: int) -> str:
        """Return why a cell of this schedule's table is what it is."""
        if step == 0 and not isinstance(self.rule, WrittenActions):
            return "nothing is kept yet"
        moment = Moment(step, table.num_steps, table.sites, table.ages[step])
        is_refresh = not table.is_read[step, site] and self.rule.may_reuse(moment)[site]
        if is_refresh and self.max_age is not None:
            return AgeLimit(self.max_age).why(moment, site)
        return self.rule.why(moment, site)

    def refuse_other_model(self, model: Any) -> None:
        """Refuse a ``torch.nn.Module`` that the rule was not made for.

        Raises:
            ScheduleError: The rule was calibrated on another model.
        """
        self.rule.refuse_other_model(model)

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


def check_at_least(minimum: int, **values: int) -> None:
    """Check that each named value is an integer and large enough.

    Raises:
        ScheduleError: A value is no integer, or less than the minimum.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ScheduleError(f"{name} must be an integer, found {value!r}")
        if value < minimum:
            raise ScheduleError(f"{name} must be at least {minimum}, found {value}")
