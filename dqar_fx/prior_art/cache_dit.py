"""cache-dit's step masks (vipshop/cache-dit), which skip blocks at the steps with 0."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import check_at_least

from .decisions import StepDecision, read_mask, write_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.schedule.schedule import Schedule

DECISIONS = {
    True: StepDecision("C", "the step mask has 1: compute"),
    False: StepDecision("R", "the step mask has 0: reuse"),
}


def step_mask(
    mask: str | Sequence[int] | None = None,
    *,
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    num_steps: int | None = None,
    sites: str | tuple[str, ...] = "span",
) -> Schedule:
    """Follow cache-dit's steps computation mask, with its static policy.

    cache-dit keeps what the blocks add between the first ``Fn_compute_blocks`` and the last
    ``Bn_compute_blocks``, which are computed at all steps. By default all blocks are one span
    here, and none is computed; F1B0 of 28 blocks is ``sites="transformer_blocks.1:28"``. Its
    dynamic policy, which may compute where the mask has 0, cannot be written as a table.

    For a named policy, pass ``cache_dit.steps_mask(mask_policy="fast", total_steps=28)``.

    Args:
        mask: 1 for a step that computes, 0 for one that reuses: ``"1110010"``, or a list.
        compute_bins: Takes the place of a mask: the lengths of the runs of steps that
            compute.
        cache_bins: The length of the run of steps that reuse after each of these.
        num_steps: The length that bins are cut to; by default all of them. With a mask, its
            length.
        sites: The blocks whose sum is kept.

    Returns:
        A schedule for ``sites``.

    Raises:
        ScheduleError: The mask is missing or malformed, has another length, or does not start
            with 1.

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
    bits = read_mask("the step mask", mask)
    if num_steps not in (None, len(bits)):
        raise ScheduleError(
            f"the step mask has {len(bits)} steps but num_steps is {num_steps}"
        )
    return write_out((DECISIONS[bit] for bit in bits), sites)


def mask_of_bins(compute_bins: Sequence[int], cache_bins: Sequence[int]) -> list[int]:
    """Return runs of ones and zeros in turn, followed by what is left of the longer list.

    Raises:
        ScheduleError: A length is no integer, or negative.
    """
    for name, bins in (("compute_bins", compute_bins), ("cache_bins", cache_bins)):
        for length in bins:
            check_at_least(0, **{f"each of {name}": length})
    pairs = zip_longest(compute_bins, cache_bins, fillvalue=0)
    return list(chain.from_iterable([1] * ones + [0] * zeros for ones, zeros in pairs))
