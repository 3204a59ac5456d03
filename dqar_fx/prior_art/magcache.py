"""MagCache (arXiv 2506.09045), which skips all blocks while a predicted error stays small."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import check_at_least, check_known_at_least

from .decisions import StepDecision, StepRule, check_number, schedule_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dqar_fx.schedule.schedule import Schedule


def magcache(
    ratios: Any,
    *,
    num_steps: int | None = None,
    threshold: float = 0.06,
    max_skip: int = 3,
    retention: float = 0.2,
) -> Schedule:
    """Skip all blocks while the error that magnitude ratios predict stays small: MagCache.

    Since the last computed step the ratios are multiplied, and the distance of each product
    from 1 is summed; a step is skipped while the sum is at most the threshold. The steps, the
    arithmetic (single precision) and the defaults are those of diffusers' ``MagCacheConfig``.
    MagCache's own code always computes step 11 of 28 of FLUX, and for Open-Sora it sums signed
    differences; this function does neither.

    The ratios hold for one stream. Where guidance is not batched, each stream follows the
    same table.

    Args:
        ratios: For each step, the mean ratio of the norm of what all blocks add to that of
            the step before; the first step, which has none, has 1. A list, array or tensor,
            such as ``diffusers.hooks.mag_cache.FLUX_MAG_RATIOS``.
        num_steps: Steps of the trajectory; None for as many as a run has. For another number
            than there are ratios, the nearest ratios are taken.
        threshold: Largest summed error.
        max_skip: Most steps that are skipped in a row (its K).
        retention: Share of the steps, from the first on, that are always computed.

    Returns:
        A schedule for the ``"span"`` of all blocks.

    Raises:
        ScheduleError: An argument is out of range, or a ratio is no positive number.

    Source:
        Ma et al. 2025, arXiv 2506.09045; diffusers 0.42, hooks/mag_cache.py.
    """
    curve = read_ratios(ratios)
    check_known_at_least(1, num_steps=num_steps)
    check_number(threshold=threshold, retention=retention)
    check_at_least(0, max_skip=max_skip)
    if retention > 1:
        raise ScheduleError(f"retention is a share of the steps, at most 1, found {retention}")
    limits = float(threshold), int(max_skip), float(retention)
    rule = StepRule(decide_magcache, (tuple(curve.tolist()), *limits))
    return schedule_steps(rule, num_steps, "span")


def decide_magcache(
    ratios: tuple[float, ...],
    threshold: float,
    max_skip: int,
    retention: float,
    num_steps: int,
) -> Iterator[StepDecision]:
    """Yield what MagCache does at each step."""
    curve = np.asarray(ratios, np.float32)
    if num_steps != len(curve):
        curve = nearest_ratios(curve, num_steps)
    retained = int(retention * num_steps + 0.5)
    for _ in range(retained):
        said = f"the first {retained} steps are computed, retention {retention:g}"
        yield StepDecision("C", f"MagCache: {said}")
    one, zero = np.float32(1), np.float32(0)
    ratio, error, skipped = one, zero, 0
    for step, scale in islice(enumerate(curve), retained, None):
        with np.errstate(over="ignore"):
            ratio = ratio * scale
            error = error + abs(one - ratio)
        skipped += 1
        known = f"MagCache: summed error {error:.3g}, {skipped} in a row; "
        limits = f"at most {threshold:.3g}, {max_skip} are skipped"
        if step and error <= threshold and skipped <= max_skip:
            yield StepDecision("R", known + limits)
            continue
        ratio, error, skipped = one, zero, 0
        yield StepDecision("C", known + limits if step else "nothing is kept yet")


def read_ratios(ratios: Any) -> NDArray[np.float32]:
    """Read one ratio per step, float32 ``[steps]``.

    Raises:
        ScheduleError: The ratios are not one row of positive numbers.
    """
    try:
        values = ratios.tolist() if hasattr(ratios, "tolist") else ratios
        curve = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"ratios must be numbers, one per step: {error}") from None
    if curve.ndim != 1 or not len(curve):
        raise ScheduleError(f"ratios must be numbers, one per step, found {ratios!r}")
    for step, ratio in enumerate(curve):
        if not 0 < ratio < np.inf:
            raise ScheduleError(
                f"ratios must be positive numbers, found {ratio} at step {step}"
            )
    return curve


def nearest_ratios(curve: NDArray[np.float32], num_steps: int) -> NDArray[np.float32]:
    """Stretch ratios to another number of steps, float32 ``[num_steps]``.

    The new steps are spread evenly, and each takes the nearest known ratio; a single step
    takes the last.
    """
    if num_steps == 1:
        return curve[-1:]
    scale = np.float32((len(curve) - 1) / (num_steps - 1))
    return curve[np.round(np.arange(num_steps, dtype=np.float32) * scale).astype(np.int64)]
