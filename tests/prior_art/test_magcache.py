"""MagCache, again as its three accumulators."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx.prior_art import magcache
from tests.helpers.prior_art_decisions import FEW, computed, error_of, reasons_of, text_of


def magcache_run(ratios, threshold, max_skip, retention):
    """Which steps compute, by three accumulators of torch."""
    ratio, error, count, steps = 1.0, 0.0, 0, []
    for step, scale in enumerate(torch.tensor(ratios)):
        skip = False
        if step >= int(retention * len(ratios) + 0.5):
            ratio *= scale
            count += 1
            error += abs(1.0 - ratio)
            skip = bool(steps) and bool(error <= threshold) and count <= max_skip
            if not skip:
                ratio, error, count = 1.0, 0.0, 0
        if not skip:
            steps.append(step)
    return steps


RATIOS = st.lists(st.floats(0.8, 1.2), min_size=1, max_size=30)
HUNDREDTHS = st.lists(
    st.integers(90, 110).map(lambda n: n / 100), min_size=1, max_size=30
)  # that sums come to lie on the threshold


@settings(max_examples=150, deadline=None)
@given(
    RATIOS | HUNDREDTHS,
    st.floats(0, 0.5) | st.sampled_from([0.01, 0.02, 0.03, 0.06, 0.1]),
    st.integers(0, 6),
    st.floats(0, 1),
)
def test_magcache_equals_its_accumulators(ratios, threshold, max_skip, retention):
    given = {"threshold": threshold, "max_skip": max_skip, "retention": retention}
    schedule = magcache(ratios, num_steps=len(ratios), **given)
    assert computed(schedule) == magcache_run(ratios, **given)
    assert schedule.sites == "span"


@FEW
@given(st.lists(st.floats(0.8, 1.2), min_size=3, max_size=8))
def test_magcache_error_that_is_the_threshold_is_skipped(ratios):
    """In single precision, as the hook sums it."""
    product, error = torch.tensor(1.0), torch.tensor(0.0)
    for ratio in torch.tensor(ratios):
        product = product * ratio
        error = error + (1 - product).abs()
    given = {"threshold": error.item(), "max_skip": 9, "retention": 0}
    schedule = magcache([1.0, *ratios], num_steps=len(ratios) + 1, **given)
    assert text_of(schedule) == "S" + "R" * len(ratios)


def test_magcache_golden():
    ratios = [1, 0.99, 0.99, 0.99, 0.98, 0.9, 0.99, 0.99]
    assert text_of(magcache(ratios, num_steps=8, retention=0)) == "SRRRCSRR"
    assert text_of(magcache(ratios, num_steps=8, retention=0, max_skip=2)) == "SRRSRSRR"
    assert text_of(magcache(ratios, num_steps=8, retention=0.5)) == "CCCSRSRR"
    assert text_of(magcache(ratios, num_steps=8, threshold=0)) == "CCCCCCCC"
    assert text_of(magcache([1.0] * 6, num_steps=6, retention=0, max_skip=9)) == "SRRRRR"


def test_magcache_says_why():
    ratios = [1, 1, 0.99, 0.99, 0.9]
    limits = "at most 0.06, 1 are skipped"
    assert reasons_of(magcache(ratios, num_steps=5, max_skip=1)) == [
        "STORE, MagCache: the first 1 steps are computed, retention 0.2",
        f"REUSE of step 0, MagCache: summed error 0, 1 in a row; {limits}",
        f"STORE, MagCache: summed error 0.01, 2 in a row; {limits}",
        f"REUSE of step 2, MagCache: summed error 0.01, 1 in a row; {limits}",
        f"COMPUTE, MagCache: summed error 0.119, 2 in a row; {limits}",
    ]
    assert reasons_of(magcache(ratios, num_steps=5, retention=0))[0] == (
        "STORE, nothing is kept yet"
    )


def test_magcache_takes_lists_arrays_and_tensors():
    ratios = [1.0, 0.97, 1.01, 0.96, 0.99]
    for kind in (tuple, np.array, torch.tensor, lambda x: torch.tensor(x).bfloat16()):
        made = magcache(kind(ratios), retention=0.1)
        assert made.num_steps is None
        assert made == magcache(kind(ratios), retention=0.1)
    assert magcache(torch.tensor(ratios)) == magcache(np.array(ratios)) == magcache(ratios)


def test_magcache_ratios_that_are_no_numbers():
    said = error_of(lambda: magcache(["a", "b"]))
    assert said.startswith("ratios must be numbers, one per step: ")
