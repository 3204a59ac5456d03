"""Systems that keep attention and feed-forward outputs: FORA, TaylorSeer, SmoothCache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.forecast import MAX_ORDER
from dqar_fx.schedule.schedule import Schedule, check_at_least

from .cells import Cell, check_number, written
from .rules_written import Similar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.schedule.measured import MeasuredRun


def fora(num_steps: int, every: int = 3) -> Schedule:
    """FORA: attention and feed-forward are computed at each ``every``-th step.

    As in its code, steps are counted from the last one, which is computed: of 8 steps with
    ``every=3``, these are 0, 1, 4 and 7. As a baseline of others (ToCa, TaylorSeer) FORA is
    counted from the first step, which is ``Schedule.interval(num_steps, every)``.

    Args:
        num_steps: Steps of the trajectory.
        every: Distance of computed steps (its N); 1 computes always.

    Returns:
        A schedule for ``"all"`` attention and feed-forward sites.

    Raises:
        ScheduleError: An argument is out of range.

    Source:
        Selvaraju et al. 2024, arXiv 2407.01425; prathebaselva/FORA, src/models.py.
    """
    check_at_least(1, num_steps=num_steps, every=every)
    return written(fora_cells(num_steps, every), "all")


def fora_cells(num_steps: int, every: int) -> Iterator[Cell]:
    """What FORA does at each step."""
    for step in range(num_steps):
        left = num_steps - 1 - step
        if step == 0:
            yield Cell("C", "FORA computes the first step")
        elif left % every == 0:
            yield Cell("C", f"FORA: steps left are a multiple of {every}: {left}")
        else:
            yield Cell("R", f"FORA: steps left are no multiple of {every}: {left}")


def taylorseer(
    num_steps: int,
    every: int = 4,
    order: int = 1,
    *,
    first: int = 2,
    start: int | None = None,
) -> Schedule:
    """TaylorSeer: attention and feed-forward are forecast between full steps.

    The first steps are full, then each ``every``-th. As in its code, differences are taken
    from the last two of the first steps on: the first forecasts are of order 1 at most, and
    each full step allows one order more. The TaylorSeer hook of diffusers has another phase,
    ``start=first + 1``, and takes differences from step 0 on, so that its first forecasts are
    of a higher order where ``first > 2`` and ``order > 1``.

    Orders are written out. Combined with another schedule by ``&`` or ``|``, it reuses where
    it would forecast.

    Args:
        num_steps: Steps of the trajectory.
        every: Distance of full steps (its N: ``interval``, ``fresh_threshold``).
        order: Of the forecasts (its O: ``max_order``); 0 for reuse. At most 3 here, where its
            code has no limit.
        first: Full steps at the start (``first_enhance``): 2 for DiT, 3 for FLUX.
        start: The first full step after these; by default ``every`` after the last of them.

    Returns:
        A schedule for ``"all"`` attention and feed-forward sites.

    Raises:
        ScheduleError: An argument is out of range.

    Source:
        Liu et al. 2025, arXiv 2503.06923; Shenyi-Z/TaylorSeer, TaylorSeer-DiT,
        cache_functions/cal_type.py and taylor_utils.
    """
    check_at_least(1, num_steps=num_steps, every=every, first=first)
    check_at_least(0, order=order)
    if order > MAX_ORDER:
        raise ScheduleError(f"order must be at most {MAX_ORDER}, found {order}")
    again = first - 1 + every if start is None else start
    check_at_least(first, start=again)
    return written(taylorseer_cells(num_steps, every, order, first, again), "all")


def taylorseer_cells(
    num_steps: int, every: int, order: int, first: int, start: int
) -> Iterator[Cell]:
    """What TaylorSeer does at each step."""
    points = 0  # full steps that differences are taken of
    for step in range(num_steps):
        is_first = step < first
        if is_first or (step >= start and (step - start) % every == 0):
            points += step >= first - 2
            known = f"the first {first}" if is_first else f"each {every}-th from {start} on"
            yield Cell("C", f"TaylorSeer: full steps are {known}")
            continue
        reached = min(order, points - 1)
        known = f"order {order}, full steps to take differences of: {points}"
        yield Cell("F" if reached else "R", f"TaylorSeer: {known}", reached)


def smoothcache(calibration: MeasuredRun, threshold: float, *, lookahead: int = 3) -> Schedule:
    """SmoothCache: reuse as far as a component's outputs stay similar, on average.

    After a computed step as many are skipped, up to ``lookahead``, as the farthest at which
    the mean change over all layers of a component is at most the threshold; changes on the
    way there are not looked at. A component is the last part of the module path (``attn1``,
    ``ff``). The last step is computed.

    The change is relative in the L2 norm, where SmoothCache has the L1 norm: equal thresholds
    are close, but not the same.

    Args:
        calibration: Of this model, from ``dqar_fx.calibrate(..., sites="all")``.
        threshold: Largest mean change (its alpha).
        lookahead: Most steps that are skipped in a row.

    Returns:
        A schedule for the calibrated sites.

    Raises:
        ScheduleError: An argument is out of range, or such ages were not calibrated.

    Source:
        Liu et al. 2024, arXiv 2411.10510; Roblox/SmoothCache,
        SmoothCache/calibration/calibration_helper.py.
    """
    check_number(threshold=threshold)
    check_at_least(1, lookahead=lookahead)
    if lookahead > calibration.max_age:
        raise ScheduleError(
            f"lookahead={lookahead}, but the calibration knows ages up to "
            f"{calibration.max_age}; calibrate with max_age={lookahead}"
        )
    rule = Similar(calibration, float(threshold), int(lookahead))
    return Schedule(calibration.num_steps, rule, sites=calibration.sites)
