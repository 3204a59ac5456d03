"""Schedules: rules that say, for each step and site, whether a kept output may be reused.

`Schedule.resolve` turns a rule into a verified `BranchTable`: it refreshes what grows older
than ``max_age``, and marks as STORE exactly those computations that a later REUSE reads.
Schedules combine: ``a & b`` reuses where both do, ``a | b`` where one does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .action import Action
from .forecast import MAX_ORDER, METHODS, points_of
from .rules import AllOf, AnyOf, Interval, Linear, Moment, Written, Young
from .table import READING, BranchTable, find_covered, find_read, no_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import nn

    from .rules import Rule
    from .table import Around

LETTERS = {action.letter: action for action in Action}


@dataclass(frozen=True)
class Schedule:
    """How a trajectory of ``num_steps`` steps reuses attention.

    Attributes:
        num_steps: Steps of the trajectory.
        rule: Which cells may reuse.
        max_age: Steps that a kept output may live; older ones are computed again. None for
            no limit.
        order: Of the forecast that takes the place of reuse; 0 for reuse as it is.
        method: How to forecast, a name of `forecast.METHODS`.
        sites: The sites it is meant for, as for ``transform``; None for any.
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
        if isinstance(self.rule, Written) and len(self.rule.letters) != self.num_steps:
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
        """The report's schedule: reuse spreads from shallow to deep after the warm-up.

        Args:
            num_steps: Steps of the trajectory.
            warmup: First steps, which compute everything.
            full_from: Step from which all sites reuse; default half-way between the end of
                the warm-up and the end of the trajectory.
            max_age: Steps that a kept output may live.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            DQAR report, "Layer scheduling strategy".
        """
        check_at_least(1, num_steps=num_steps, warmup=warmup)
        late = warmup + max(num_steps - warmup, 0) // 2 if full_from is None else full_from
        check_at_least(warmup, full_from=late)
        return cls(num_steps, Linear(warmup, late), max_age)

    @classmethod
    def interval(
        cls, num_steps: int, every: int, *, warmup: int = 1, max_age: int | None = None
    ) -> Schedule:
        """Compute at each ``every``-th step after the warm-up, reuse between.

        Args:
            num_steps: Steps of the trajectory.
            every: Distance of computed steps; 1 computes always.
            warmup: First steps, which compute everything.
            max_age: Steps that a kept output may live.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            FORA, arXiv 2407.01425; Pyramid Attention Broadcast, arXiv 2408.12588.
        """
        check_at_least(1, num_steps=num_steps, every=every, warmup=warmup)
        return cls(num_steps, Interval(every, warmup), max_age)

    @classmethod
    def compute_all(cls, num_steps: int) -> Schedule:
        """Never reuse: the untransformed model, as a branch table."""
        return cls(num_steps, Interval(every=1, warmup=num_steps))

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
        """A schedule written out.

        Args:
            actions: A text such as ``"CCRRCRRC"``, one letter per step, for all sites; several
                texts (or lines), one per site; a bool array, True for reuse; or an array of
                `Action`, ``[steps, sites]`` or ``[steps]``. In texts of C and R and in bool
                arrays a computation is stored where the next step reads it; texts with an S
                and arrays of `Action` are taken as they stand.
            max_age: Steps that a kept output may live. A cell that is older is an error here,
                since nothing written out is changed.
            orders: Orders of the forecasts (F), one for all or ``[steps, sites]``.
            method: How to forecast, see `forecast`.
            weights: Of the forecasts, ``[steps, sites, points]``, in the place of the
                method's; see `BranchTable`.

        Raises:
            ScheduleError: A letter or shape that is none of these.
        """
        known, weighed = orders_of(orders), weights_of(weights)
        lines = actions.split() if isinstance(actions, str) else actions
        if isinstance(lines, list | tuple) and lines and isinstance(lines[0], str):
            letters = letters_of_texts([str(line) for line in lines])
            strict = any("S" in line for line in lines)
            rule = Written(letters, strict, known, weighed)
            return cls(len(letters), rule, max_age, method=method)
        try:
            array = np.atleast_1d(np.asarray(lines))
        except ValueError as error:
            raise ScheduleError(
                f"actions need rows of one length, [steps, sites]: {error}"
            ) from None
        if array.dtype.kind in "OUS":
            raise ScheduleError(
                f"actions must be letters in texts, bools or dqar_fx.Action, found {actions!r}"
            )
        strict = array.dtype != np.bool_
        letters = letters_of_array(array if strict else array * int(Action.REUSE))
        rule = Written(letters, strict, known, weighed)
        return cls(len(letters), rule, max_age, method=method)

    def forecast(self, order: int = 1, method: str = "taylor") -> Schedule:
        """The same schedule, with forecasts in the place of reuse.

        Args:
            order: 1, 2 or 3: a line, a parabola, a cubic through what was computed last.
            method: ``"taylor"`` (finite differences), ``"chebyshev"`` (the polynomial through
                the points, in Chebyshev's basis), ``"least_squares"`` (fitted to one point
                more than it takes).

        Raises:
            ScheduleError: The order is out of range, or the method unknown.

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
        """Reuse where one of the schedules does."""
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
        rule = how((self._aged_rule(), other._aged_rule()))
        sites = next(iter(known), None)
        return Schedule(self.num_steps, rule, None, self.order, self.method, sites)

    def _aged_rule(self) -> Rule:
        """The rule, with the limit of age as a part of it."""
        return self.rule if self.max_age is None else AllOf((self.rule, Young(self.max_age)))

    def resolve(self, sites: Sequence[str], around: Around = ()) -> BranchTable:
        """The branch table for sites with these paths.

        Args:
            sites: Their paths, in execution order.
            around: Per site, the columns of those that contain it; empty if none does.

        Raises:
            ScheduleError: The rule has another number of sites, or its table breaks a rule.
        """
        paths = tuple(str(path) for path in sites)
        if isinstance(self.rule, Written):
            actions = self.resolve_written(self.rule, len(paths), around)
        else:
            actions = self.mark_stores(self.decide(paths, around))
        orders, weights = np.full_like(actions, self.order), no_weights()
        if isinstance(self.rule, Written) and not self.order:
            orders[:] = self.rule.orders
            weights = np.array(self.rule.weights) if self.rule.weights else weights
        facts = (self.max_age, self.reason, orders, self.method)
        return BranchTable(actions, paths, *facts, tuple(around), weights)

    def mark_stores(
        self, actions: NDArray[np.int8], orders: tuple[tuple[int, ...], ...] = ((0,),)
    ) -> NDArray[np.int8]:
        """REUSE as this schedule does it, COMPUTE as STORE where a later cell reads it."""
        marked = actions.copy()
        known = np.full_like(actions, self.order)
        if not self.order:
            known[:] = orders
        if self.order:
            marked[actions == Action.REUSE] = Action.FORECAST
        is_read = np.isin(marked, READING)
        reads = np.vectorize(lambda order: points_of(self.method, int(order)))(known)
        points = np.where(marked == Action.FORECAST, reads, is_read)  # reuse reads one
        computed = marked == Action.COMPUTE
        marked[computed & find_read(computed, is_read, points)] = Action.STORE
        return marked

    def decide(self, sites: tuple[str, ...], around: Around) -> NDArray[np.int8]:
        """REUSE where the rule allows it and what is kept is young enough, else COMPUTE."""
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
        """Why a cell of this schedule's table is what it is."""
        if step == 0 and not isinstance(self.rule, Written):
            return "nothing is kept yet"
        moment = Moment(step, table.num_steps, table.sites, table.ages[step])
        is_refresh = not table.is_read[step, site] and self.rule.may_reuse(moment)[site]
        if is_refresh and self.max_age is not None:
            return Young(self.max_age).why(moment, site)
        return self.rule.why(moment, site)

    def refuse_other_model(self, model: nn.Module) -> None:
        """Raise if the rule was calibrated on another model.

        Raises:
            ScheduleError: It was.
        """
        self.rule.refuse_other_model(model)

    def resolve_written(
        self, rule: Written, num_sites: int, around: Around
    ) -> NDArray[np.int8]:
        """Actions as written; where C may stand for a STORE, that one is found."""
        letters = rule.spread(num_sites)
        number = np.vectorize(lambda letter: int(LETTERS[letter]))
        actions: NDArray[np.int8] = number(letters).astype(np.int8)
        if rule.strict:
            return actions
        actions[find_covered(np.isin(actions, READING), around)] = Action.COVERED
        return self.mark_stores(actions, rule.orders)


def orders_of(orders: ArrayLike | None) -> tuple[tuple[int, ...], ...]:
    """Orders ``[steps or 1, sites or 1]`` of forecasts that are written out."""
    if orders is None:
        return ((0,),)
    array = np.atleast_2d(np.asarray(orders))
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ScheduleError(
            f"orders must be one integer, or [steps, sites] of them, found {orders!r}"
        )
    return tuple(tuple(int(order) for order in row) for row in array)


def weights_of(weights: ArrayLike | None) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Weights ``[steps, sites, points]`` of forecasts that are written out."""
    if weights is None:
        return ()
    try:
        array = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"weights need numbers, [steps, sites, points]: {error}") from None
    if array.ndim != 3:
        raise ScheduleError(
            f"weights need shape [steps, sites, points], but have {list(array.shape)}"
        )
    return tuple(tuple(map(tuple, row)) for row in array.tolist())


def letters_of_texts(lines: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Letters ``[steps, sites]`` of one text per site."""
    if len({len(line) for line in lines}) != 1:
        raise ScheduleError(
            f"texts of one schedule need one length, found {[len(line) for line in lines]}"
        )
    for site, line in enumerate(lines):
        for step, letter in enumerate(line):
            if letter not in LETTERS:
                raise ScheduleError(
                    f"step {step}, site {site}: {letter!r} is no action; "
                    f"known are {', '.join(f'{k} ({v.name})' for k, v in LETTERS.items())}"
                )
    return tuple(zip(*lines, strict=True))


def letters_of_array(array: NDArray[Any]) -> tuple[tuple[str, ...], ...]:
    """Letters ``[steps, sites]`` of an array of actions."""
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or columns.size == 0:
        raise ScheduleError(
            f"actions need shape [steps, sites] or [steps], found {list(array.shape)}"
        )
    unknown = np.argwhere(~np.isin(columns, list(Action)))
    if len(unknown):
        step, site = map(int, unknown[0])
        raise ScheduleError(
            f"step {step}, site {site}: {columns[step, site].item()!r} is no action; "
            f"known are {', '.join(f'{a.value} ({a.name})' for a in Action)}"
        )
    return tuple(tuple(Action(int(a)).letter for a in row) for row in columns)


def check_at_least(minimum: int, **values: int) -> None:
    """Raise if a named value is no integer or too small."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ScheduleError(f"{name} must be an integer, found {value!r}")
        if value < minimum:
            raise ScheduleError(f"{name} must be at least {minimum}, found {value}")
