"""Schedules: rules that say, for each step and site, whether a kept output may be reused.

`Schedule.resolve` turns a rule into a verified `BranchTable`: it refreshes what grows older
than ``max_age``, and marks as STORE exactly those computations that a later REUSE reads.
Schedules combine: ``a & b`` reuses where both do, ``a | b`` where one does.

A schedule needs no number of steps: `Schedule.for_run` fixes it when a run says how many.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .forecast import MAX_ORDER, METHODS, damping_for, points_of
from .rules import (
    AgeLimit,
    AllOf,
    AnyOf,
    ComputeRule,
    IntervalRule,
    LaterCallRule,
    LinearRule,
)
from .run import RunShape
from .schedule_tiers import ORDER, SITES, TIERS, find_tier
from .table import check_damping
from .table_maker import TableMaker
from .written_out import WrittenActions, read_letters, read_orders, read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from .rules import Rule
    from .table import Around, BranchTable

BY_CACHE = "cache"
"""Damping that is left to the format of what is kept."""


@dataclass(frozen=True)
class Schedule:
    """How a trajectory reuses attention.

    Attributes:
        num_steps: Steps of the trajectory, which are rows of the table: a solver that calls
            the denoiser twice per step has two rows for it. None if a run says how many.
        rule: Decides which cells may reuse.
        max_age: The most steps that a kept output may be old; older ones are computed again.
            None for no limit.
        order: Order of the forecast that replaces reuse; 0 for plain reuse.
        method: How to forecast, a name of `forecast.METHODS`.
        damping: How much forecasts are damped, see `forecast`.
        sites: The sites that the schedule is meant for, as for ``transform``; None for any.
        resample: Whether `for_run` may make a schedule of another number of steps from this
            one: each row then does what the row of the nearest noise level does.
        run: What `for_run` was told of the run; None if it was not called.

    Raises:
        ScheduleError: ``num_steps`` or ``max_age`` is no integer or less than 1, ``damping``
            no number or less than 0, actions are written out for another number of steps, or
            with weights that no other number of steps can have and ``resample``.
    """

    num_steps: int | None
    rule: Rule
    max_age: int | None = None
    order: int = 0
    method: str = "taylor"
    damping: float | str = 0.0
    sites: str | tuple[str, ...] | None = None
    resample: bool = field(default=False, repr=False)
    run: RunShape | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_known_at_least(1, num_steps=self.num_steps, max_age=self.max_age)
        check_damping(0.0 if self.damping == BY_CACHE else self.damping)
        if not isinstance(self.rule, WrittenActions):
            return
        if len(self.rule.letters) != self.num_steps:
            raise ScheduleError(
                f"actions are written out for {len(self.rule.letters)} steps but num_steps is "
                f"{self.num_steps}"
            )
        if self.resample and self.rule.weights:
            raise ScheduleError(
                "weights of forecasts hold for the steps that they were made for, and cannot "
                "be resampled: leave out the weights, or resample=True"
            )

    @classmethod
    def linear(
        cls,
        num_steps: int | None = None,
        warmup: int = 5,
        *,
        full_from: int | None = None,
        max_age: int | None = None,
    ) -> Schedule:
        """Spread reuse from shallow to deep sites after a warm-up, as the report does.

        Args:
            num_steps: Steps of the trajectory; None for as many as a run has.
            warmup: How many first steps compute everything.
            full_from: Step from which all sites reuse; by default half-way between the end
                of the warm-up and the end of the trajectory.
            max_age: The most steps that a kept output may be old.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            DQAR report, "Layer scheduling strategy".
        """
        check_known_at_least(1, num_steps=num_steps)
        check_at_least(1, warmup=warmup)
        check_known_at_least(warmup, full_from=full_from)
        return cls(num_steps, LinearRule(warmup, full_from), max_age)

    @classmethod
    def interval(
        cls,
        num_steps: int | None = None,
        every: int | None = None,
        *,
        warmup: int = 1,
        max_age: int | None = None,
    ) -> Schedule:
        """Compute at each ``every``-th step after the warm-up, reuse between.

        Steps are calls of the denoiser here as everywhere: with a solver that calls it twice
        per step, ``every=3`` computes at first and second calls in turn. Add
        ``| Schedule.second_calls()`` to compute at first calls alone.

        Args:
            num_steps: Steps of the trajectory; None for as many as a run has.
            every: Distance between computed steps; 1 computes at each step. It has to be
                given.
            warmup: How many first steps compute everything.
            max_age: The most steps that a kept output may be old.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            FORA, arXiv 2407.01425; Pyramid Attention Broadcast, arXiv 2408.12588.
        """
        check_known_at_least(1, num_steps=num_steps)
        if every is None:
            raise ScheduleError(
                "every must be an integer, found None: an interval needs the distance between "
                "computed steps, Schedule.interval(every=3)"
            )
        check_at_least(1, every=every, warmup=warmup)
        return cls(num_steps, IntervalRule(every, warmup), max_age)

    @classmethod
    def compute_all(cls, num_steps: int | None = None) -> Schedule:
        """Compute everything at every step, as the untransformed model does."""
        return cls(num_steps, ComputeRule())

    @classmethod
    def second_calls(cls, num_steps: int | None = None, *, warmup: int = 1) -> Schedule:
        """Reuse at the second and later calls of each step of the solver.

        Such solvers (Heun's) call the denoiser twice per step; `for_run` says which call each
        row is. Where each step calls once, or that is not known, everything is computed.
        ``a | Schedule.second_calls()`` adds these calls to what ``a`` reuses.

        Args:
            num_steps: Rows of the table: calls of the denoiser, not steps of the solver. None
                for as many as a run has.
            warmup: How many first rows compute everything.

        Raises:
            ScheduleError: An argument is out of range.
        """
        check_at_least(1, warmup=warmup)
        return cls(num_steps, LaterCallRule(warmup))

    @classmethod
    def tier(cls, name: str, num_steps: int | None = None) -> Schedule:
        """Take a schedule tier: a rule of our own for any number of steps and any solver.

        Whatever takes a schedule takes the name alone, too. In a run that is too short for
        it, a tier computes everything, and says so in a warning.

        Args:
            name: ``"quality"``, ``"balanced"``, ``"fast"`` or ``"fastest"``.
            num_steps: Steps of the trajectory; None for as many as a run has.

        Raises:
            ScheduleError: The name or the number is out of range.
        """
        return cls(num_steps, find_tier(name), order=ORDER, sites=SITES)

    @classmethod
    def from_actions(
        cls,
        actions: str | Sequence[str] | ArrayLike,
        *,
        max_age: int | None = None,
        orders: ArrayLike | None = None,
        method: str = "taylor",
        damping: float | str = 0.0,
        weights: ArrayLike | None = None,
        resample: bool = False,
        noise: ArrayLike | None = None,
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
            damping: How much forecasts are damped, see `forecast`.
            weights: Weights of the forecasts, ``[steps, sites, points]``, in place of the
                method's; see `BranchTable`.
            resample: Whether a run may have another number of steps than are written. Each of
                its rows then does what the written row of the nearest noise level does, or
                of the nearest relative position where noise levels are not known; it
                computes where nothing is kept, or what is kept is older than ``max_age`` or,
                for its share of the run, than anything that is read as written; and what is
                stored is found anew.
            noise: Signal-to-noise ratio of the latent at each step, float ``[steps]``, as
                ``dqar_fx.signal_to_noise`` gives it; None if it is not known.

        Raises:
            ScheduleError: The actions, orders, weights or noise have none of these shapes, a
                letter or number is no action, or weights should be resampled.
        """
        letters, strict = read_letters(actions)
        known = RunShape.of(len(letters), (), noise).noise
        written = read_orders(orders), read_weights(weights)
        rule = WrittenActions(letters, strict, *written, noise=known)
        how: dict[str, Any] = {"method": method, "damping": damping, "resample": resample}
        return replace(cls(len(letters), rule, max_age), **how)

    @classmethod
    def from_table(cls, table: BranchTable) -> Schedule:
        """Write a branch table out again, for its own sites and as far as it is good."""
        written = cls.from_actions(
            table.actions,
            max_age=table.max_age,
            orders=table.orders if table.orders.any() else None,
            method=table.method,
            damping=table.damping,
            weights=table.weights if table.weights.size else None,
            resample=table.resample,
            noise=table.noise or None,
        )
        return replace(written, sites=table.sites)

    def for_run(
        self, num_rows: int, *, calls: Sequence[int] = (), noise: ArrayLike | None = None
    ) -> Schedule:
        """Return the schedule with its number of steps fixed, as a run has them.

        Args:
            num_rows: Rows of the table: evaluations of the denoiser per stream. A
                second-order solver of diffusers has ``len(scheduler.timesteps)`` of them, one
                less than twice its steps.
            calls: Which call of its solver's step each row is: 0 for the first, 1 for the
                second. Heun's has 0, 1, 0, 1, ..., 0, see `run.calls_as_set`; empty or all 0
                where each step calls once.
            noise: Signal-to-noise ratio of the latent at each row, float ``[rows]``, as
                `noise.noise_as_set` gives it; None if it is not known.

        Returns:
            This schedule itself where it has that number already and learns nothing new.

        Raises:
            ScheduleError: The schedule is for another number of steps, or its rule is not
                good for the run, or needs noise levels that are not known.
        """
        check_at_least(1, num_rows=num_rows)
        run = RunShape.of(num_rows, calls, noise)
        is_same = self.num_steps == run.num_rows
        if is_same and self.run is not None:
            run = replace(
                self.run,
                calls=run.calls or self.run.calls,
                noise=run.noise or self.run.noise,
            )
        rule = self.rule.for_run(run)  # first: it knows best why it is not good for the run
        if not (is_same or self.num_steps is None or self.resample):
            raise ScheduleError(
                f"the schedule is for {self.num_steps} steps, but the run has {run.num_rows}, "
                "counted as calls of the denoiser per stream. Give a schedule without a "
                "number of steps, such as Schedule.interval(every=3), or say that this one "
                "may be resampled: replace(schedule, resample=True)"
            )
        fixed = replace(
            self,
            num_steps=run.num_rows,
            rule=rule,
            resample=self.resample and is_same,
            run=run if run.calls or run.noise else None,
        )
        return self if fixed == self else fixed

    @property
    def waits_for_run(self) -> bool:
        """Whether a run has to say more before there is a table: its length or its noise."""
        return self.num_steps is None or self.rule.needs_noise

    @property
    def notice(self) -> str:
        """What a user should be told of it, in runs of its number of steps; mostly empty."""
        return "" if self.num_steps is None else self.rule.notice_for(self.num_steps)

    @property
    def max_history(self) -> int:
        """How many outputs of a site are kept at a time, at most, whatever the run."""
        return points_of(self.method, self.order or self.rule.max_order)

    def forecast(
        self, order: int = 1, method: str = "taylor", *, damping: float | str = 0.0
    ) -> Schedule:
        """Return the same schedule with forecasts in place of reuse.

        Args:
            order: 1, 2 or 3: a line, a parabola or a cubic through the last computed outputs.
            method: ``"taylor"`` (finite differences), ``"chebyshev"`` (the interpolating
                polynomial, in Chebyshev's basis) or ``"least_squares"`` (a polynomial fitted
                to one more point than it needs).
            damping: Noise of what is kept, by its change from one step to the next: the
                larger, the nearer weights are to those of a mean, which amplifies none. 0
                leaves the method's weights as they are. ``"cache"`` takes what the ``cache``
                of `transform` asks for: nothing for 16 bits and more; its rounding error, by
                a change of 3 / number of steps, for 8 bits.

        Raises:
            ScheduleError: The order or the damping is out of range, or the method is unknown.

        Source:
            TaylorSeer, arXiv 2503.06923.
        """
        check_at_least(1, order=order)
        if order > MAX_ORDER or method not in METHODS:
            raise ScheduleError(
                f"a forecast has an order of 1 to {MAX_ORDER} and one of the methods "
                f"{', '.join(METHODS)}; found order {order}, method {method!r}"
            )
        return replace(self, order=order, method=method, damping=damping)

    def __and__(self, other: Schedule) -> Schedule:
        """Reuse where both schedules do."""
        return self._combined(other, AllOf)

    def __or__(self, other: Schedule) -> Schedule:
        """Reuse where at least one of the schedules does."""
        return self._combined(other, AnyOf)

    def _combined(self, other: Schedule, how: type[AllOf | AnyOf]) -> Schedule:
        if not isinstance(other, Schedule):
            return NotImplemented
        pair = (self, other)
        lengths = {each.num_steps for each in pair if each.num_steps is not None}
        if len(lengths) > 1:
            raise ScheduleError(
                f"schedules of {self.num_steps} and {other.num_steps} steps cannot be combined"
            )
        resample = all(each.resample or each.num_steps is None for each in pair)
        runs = [each.run for each in pair if each.run is not None]
        hows = {(each.order, each.method, each.damping) for each in pair}
        if len(hows) > 1:
            raise ScheduleError(
                "combine schedules first, then forecast: (a & b).forecast(...)"
            )
        known = {each.sites for each in pair} - {None}
        if len(known) > 1:
            raise ScheduleError(
                f"schedules for sites={self.sites!r} and {other.sites!r} cannot be combined: "
                "replace(schedule, sites=None), and give the sites to transform"
            )
        rule = how((self.aged_rule(), other.aged_rule()))
        return Schedule(
            next(iter(lengths), None),
            rule,
            order=self.order,
            method=self.method,
            damping=self.damping,
            sites=next(iter(known), None),
            resample=resample and bool(lengths),
            run=next(iter(runs), None),
        )

    def aged_rule(self) -> Rule:
        """Return the rule with ``max_age`` as a part of it."""
        return (
            self.rule if self.max_age is None else AllOf((self.rule, AgeLimit(self.max_age)))
        )

    def resolve(
        self, sites: Sequence[str], around: Around = (), *, rounding: float = 0.0
    ) -> BranchTable:
        """Work out the branch table for the sites of a model.

        Args:
            sites: Module paths, in execution order.
            around: For each site, the columns of the sites that contain it; empty if none
                does.
            rounding: Root mean square of what keeping an output adds to it in error, relative
                to it: what forecasts are damped for where the schedule leaves it to the cache.

        Raises:
            ScheduleError: The rule is written out for another number of sites, or the table
                is invalid, see `BranchTable`. Or no run has said yet how many steps there
                are, see `for_run`.
        """
        if self.num_steps is None:
            raise ScheduleError(
                "the schedule has no number of steps, so that there is no table yet: a run "
                "says how many. To make one now, say it: "
                "schedule.for_run(20).resolve(sites)"
            )
        fixed = self.for_run(self.num_steps)
        run = RunShape(self.num_steps) if fixed.run is None else fixed.run
        damping = self.damping
        if isinstance(damping, str):
            damping = damping_for(rounding, run.num_rows)
        how = fixed.max_age, fixed.order, fixed.method, fixed.resample, damping
        return TableMaker(fixed.rule, run, *how).make(tuple(map(str, sites)), around)

    def refuse_other_model(self, model: Any) -> None:
        """Refuse a ``torch.nn.Module`` that the rule was not made for.

        Raises:
            ScheduleError: The rule was calibrated on another model.
        """
        self.rule.refuse_other_model(model)


def as_schedule(given: object, what: str = "schedule=") -> Schedule:
    """Return a schedule as it is, and that of a tier for the tier's name.

    Args:
        given: What a user gave.
        what: What the message of the error calls it.

    Raises:
        ScheduleError: It is neither.
    """
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str) and given in TIERS:
        return Schedule.tier(given)
    raise ScheduleError(
        f"{what}{given!r}: expected a dqar_fx.Schedule, or the name of a schedule tier, "
        f"{', '.join(TIERS)}; for a written-out one use Schedule.from_actions(...)"
    )


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


def check_known_at_least(minimum: int, **values: int | None) -> None:
    """Check the same of each named value that is not None.

    Raises:
        ScheduleError: A value is no integer, or less than the minimum.
    """
    known = {name: value for name, value in values.items() if value is not None}
    check_at_least(minimum, **known)
