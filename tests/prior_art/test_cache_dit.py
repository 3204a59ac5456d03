"""cache-dit's step masks, again as two stacks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dqar_fx.prior_art import step_mask
from tests.helpers.prior_art_decisions import FEW, reasons_of, text_of


def steps_of_bins(compute_bins, cache_bins, total):
    """By taking from two stacks in turn until there are enough."""
    ones, zeros, mask = list(compute_bins)[::-1], list(cache_bins)[::-1], []
    while len(mask) < total:
        if ones:
            mask += [1] * ones.pop()
        if zeros:
            mask += [0] * zeros.pop()
    return mask[:total]


BINS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@FEW
@given(st.data(), st.integers(1, 5), BINS, BINS)
def test_step_mask_of_bins_equals_two_stacks(data, head, compute_bins, cache_bins):
    compute_bins = [head, *compute_bins]
    total = data.draw(st.integers(1, sum(compute_bins) + sum(cache_bins)))
    mask = steps_of_bins(compute_bins, cache_bins, total)
    made = step_mask(compute_bins=compute_bins, cache_bins=cache_bins, num_steps=total)
    assert [int(letter != "R") for letter in text_of(made)] == mask
    assert made == step_mask(mask) == step_mask("".join(map(str, mask)))
    assert made == step_mask(np.array(mask), num_steps=total)
    assert made == step_mask([bool(bit) for bit in mask])


def test_step_mask_golden():
    slow = step_mask(compute_bins=[8, 3, 3, 2, 1, 1], cache_bins=[1, 2, 2, 2, 3])
    assert slow == step_mask("1111111101110011100110010001")
    assert text_of(slow) == "CCCCCCCSRCCSRRCCSRRCSRRSRRRC"
    assert slow.sites == "span"
    assert step_mask("10", sites="blocks.1:28").sites == "blocks.1:28"
    assert reasons_of(step_mask("10")) == [
        "STORE, the step mask has 1: compute",
        "REUSE of step 0, the step mask has 0: reuse",
    ]
