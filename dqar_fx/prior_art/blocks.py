"""Systems that keep what a run of blocks adds: cache-dit's step masks, MagCache."""

from __future__ import annotations

from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import check_at_least

from .cells import Cell, bits_of, check_number, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dqar_fx.schedule.schedule import Schedule


# ---- cache-dit -----------------------------------------------------------------------------


def step_mask(
    mask: str | Sequence[int] | None = None,
    *,
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    num_steps: int | None = None,
    sites: str | tuple[str, ...] = "span",
) -> Schedule:
    """cache-dit's steps computation mask, with its static policy.

    cache-dit keeps what the blocks add between the first ``Fn_compute_blocks`` and the last
    ``Bn_compute_blocks``, which are computed at all steps. By default all blocks are one span
    here, and none is computed; F1B0 of 28 blocks is ``sites="transformer_blocks.1:28"``. Its
    dynamic policy, which may compute where the mask has 0, is no table.

    For a named policy, pass ``cache_dit.steps_mask(mask_policy="fast", total_steps=28)``.

    Args:
        mask: 1 for a step that computes, 0 for one that reuses: ``"1110010"``, or a list.
        compute_bins: In place of a mask: how many steps compute in a row, each time.
        cache_bins: How many reuse after each of these.
        num_steps: The length that bins are cut to; by default all of them. With a mask, its
            length.
        sites: The blocks whose sum is kept.

    Returns:
        A schedule for ``sites``.

    Raises:
        ScheduleError: The mask is none, has another length, or does not start with 1.

    Source:
        vipshop/cache-dit 1.5.3, caching/cache_interface.py, ``steps_mask``, and
        cache_contexts/cache_manager.py, ``can_cache``.
    """
    given = [part is not None for part in (mask, compute_bins, cache_bins)]
    if given not in ([True, False, False], [False, True, True]):
        raise ScheduleError("expected a mask, or both compute_bins and cache_bins")
    if num_steps is not None:
        check_at_least(1, num_steps=num_steps)
    if mask is None:
        mask = mask_of_bins(compute_bins or (), cache_bins or ())[:num_steps]
    bits = bits_of("the step mask", mask)
    if num_steps not in (None, len(bits)):
        raise ScheduleError(
            f"the step mask has {len(bits)} steps but num_steps is {num_steps}"
        )
    reasons = {True: "the step mask has 1: compute", False: "the step mask has 0: reuse"}
    return written((Cell("C" if bit else "R", reasons[bit]) for bit in bits), sites)


def mask_of_bins(compute_bins: Sequence[int], cache_bins: Sequence[int]) -> list[int]:
    """Runs of ones and zeros in turn; what is left of the longer one follows."""
    for name, bins in (("compute_bins", compute_bins), ("cache_bins", cache_bins)):
        for length in bins:
            check_at_least(0, **{f"each of {name}": length})
    pairs = zip_longest(compute_bins, cache_bins, fillvalue=0)
    return list(chain.from_iterable([1] * ones + [0] * zeros for ones, zeros in pairs))


# ---- MagCache ------------------------------------------------------------------------------


def magcache(
    ratios: Any,
    *,
    num_steps: int | None = None,
    threshold: float = 0.06,
    max_skip: int = 3,
    retention: float = 0.2,
) -> Schedule:
    """MagCache: all blocks are skipped while the error that magnitudes predict stays small.

    Since the last computed step the ratios are multiplied, and what each product differs from
    1 is summed; a step is skipped while the sum is at most the threshold. The steps, the
    arithmetic (single precision) and the defaults are those of diffusers' ``MagCacheConfig``.
    MagCache's own code computes step 11 of 28 of FLUX in any case, and for Open-Sora it sums
    differences with their sign; here neither.

    The ratios hold for one stream. Where guidance is not batched, each stream follows the
    same table.

    Args:
        ratios: Per step, mean ratio of the norm of what all blocks add to that of the step
            before; the first, which has none, is 1. A list, array or tensor, such as
            ``diffusers.hooks.mag_cache.FLUX_MAG_RATIOS``.
        num_steps: Steps of the trajectory, by default as many as ratios; for another number
            the nearest ones are taken.
        threshold: Largest summed error.
        max_skip: Most steps that are skipped in a row (its K).
        retention: Share of the steps, from the first on, that are computed.

    Returns:
        A schedule for the ``"span"`` of all blocks.

    Raises:
        ScheduleError: An argument is out of range, or a ratio is no positive number.

    Source:
        Ma et al. 2025, arXiv 2506.09045; diffusers 0.42, hooks/mag_cache.py.
    """
    curve = curve_of(ratios)
    if num_steps is not None:
        check_at_least(1, num_steps=num_steps)
        curve = nearest(curve, num_steps)
    check_number(threshold=threshold, retention=retention)
    check_at_least(0, max_skip=max_skip)
    if retention > 1:
        raise ScheduleError(f"retention is a share of the steps, at most 1, found {retention}")
    retained = int(retention * len(curve) + 0.5)
    known = f"the first {retained} steps are computed, retention {retention:g}"
    head = [Cell("C", f"MagCache: {known}")] * retained
    tail = magcache_cells(curve, retained, float(threshold), max_skip)
    return written([*head, *tail], "span")


def magcache_cells(
    curve: NDArray[np.float32], retained: int, threshold: float, max_skip: int
) -> Iterator[Cell]:
    """What MagCache does at each step after those that it retains."""
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
            yield Cell("R", known + limits)
            continue
        ratio, error, skipped = one, zero, 0
        yield Cell("C", known + limits if step else "nothing is kept yet")


def curve_of(ratios: Any) -> NDArray[np.float32]:
    """Ratios, one per step.

    Raises:
        ScheduleError: They are not positive numbers in a row.
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


def nearest(curve: NDArray[np.float32], num_steps: int) -> NDArray[np.float32]:
    """The curve at as many places, evenly spaced, each the nearest known; the last for one."""
    if num_steps == 1:
        return curve[-1:]
    scale = np.float32((len(curve) - 1) / (num_steps - 1))
    return curve[np.round(np.arange(num_steps, dtype=np.float32) * scale).astype(np.int64)]
