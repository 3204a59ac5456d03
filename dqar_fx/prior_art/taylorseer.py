"""TaylorSeer (arXiv 2503.06923), which forecasts layers between full steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.forecast import MAX_ORDER
from dqar_fx.schedule.schedule import check_at_least, check_known_at_least

from .decisions import StepDecision, StepRule, schedule_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.schedule.schedule import Schedule


def taylorseer(
    num_steps: int | None = None,
    every: int = 4,
    order: int = 1,
    *,
    first: int = 2,
    start: int | None = None,
) -> Schedule:
    """Forecast attention and feed-forward between full steps: TaylorSeer.

    The first steps are full, then each ``every``-th. As in its code, differences are taken
    from the last two of the first steps on: the first forecasts have an order of at most 1,
    and each full step allows one order more. The TaylorSeer hook of diffusers has another
    phase, ``start=first + 1``, and takes differences from step 0 on, so that its first
    forecasts have a higher order where ``first > 2`` and ``order > 1``.

    Orders are written out. Combined with another schedule by ``&`` or ``|``, it reuses where
    it would forecast.

    Args:
        num_steps: Steps of the trajectory; None for as many as a run has.
        every: Distance between full steps (its N: ``interval``, ``fresh_threshold``).
        order: Order of the forecasts (its O: ``max_order``); 0 for reuse. At most 3 here,
            where its code has no limit.
        first: How many full steps come first (``first_enhance``): 2 for DiT, 3 for FLUX.
        start: The first full step after these; by default ``every`` after the last of them.

    Returns:
        A schedule for ``"all"`` attention and feed-forward sites.

    Raises:
        ScheduleError: An argument is out of range.

    Source:
        Liu et al. 2025, arXiv 2503.06923; Shenyi-Z/TaylorSeer, TaylorSeer-DiT,
        cache_functions/cal_type.py and taylor_utils.
    """
    check_known_at_least(1, num_steps=num_steps)
    check_at_least(1, every=every, first=first)
    check_at_least(0, order=order)
    if order > MAX_ORDER:
        raise ScheduleError(f"order must be at most {MAX_ORDER}, found {order}")
    again = first - 1 + every if start is None else start
    check_at_least(first, start=again)
    rule = StepRule(decide_taylorseer, (every, order, first, again), order)
    return schedule_steps(rule, num_steps, "all")


def decide_taylorseer(
    every: int, order: int, first: int, start: int, num_steps: int
) -> Iterator[StepDecision]:
    """Yield what TaylorSeer does at each step."""
    points = 0  # full steps that differences are taken of
    for step in range(num_steps):
        is_first = step < first
        if is_first or (step >= start and (step - start) % every == 0):
            points += step >= first - 2
            known = f"the first {first}" if is_first else f"each {every}-th from {start} on"
            yield StepDecision("C", f"TaylorSeer: full steps are {known}")
            continue
        reached = min(order, points - 1)
        known = f"order {order}, full steps to take differences of: {points}"
        yield StepDecision("F" if reached else "R", f"TaylorSeer: {known}", reached)
