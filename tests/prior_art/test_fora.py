"""FORA, again as its loop that counts down."""

from hypothesis import given
from hypothesis import strategies as st

from dqar_fx import Schedule
from dqar_fx.prior_art import fora
from tests.helpers.prior_art_decisions import FEW, computed, reasons_of, text_of

STEPS, EVERY = st.integers(1, 40), st.integers(1, 8)


@FEW
@given(STEPS, EVERY)
def test_fora_equals_a_loop_that_counts_down(num_steps, every):
    expected, index = [], num_steps - 1
    while index >= 0:
        if index == num_steps - 1 or index % every == 0:
            expected.append(num_steps - 1 - index)
        index -= 1
    assert computed(fora(num_steps, every)) == expected


def test_fora_golden():
    assert text_of(fora(8)) == "CSRRSRRC"
    assert text_of(fora(9, 4)) == "SRRRSRRRC"
    assert text_of(fora(7, 1)) == "CCCCCCC"
    assert fora(8).sites == "all"


def test_fora_counts_from_the_last_step_and_the_interval_from_the_first():
    assert text_of(fora(7, 3)) == text_of(Schedule.interval(7, 3)) == "SRRSRRC"
    assert text_of(fora(8, 3)) != text_of(Schedule.interval(8, 3))


def test_fora_says_why():
    assert reasons_of(fora(5)) == [
        "COMPUTE, FORA computes the first step",
        "STORE, FORA: steps left are a multiple of 3: 3",
        "REUSE of step 1, FORA: steps left are no multiple of 3: 2",
        "REUSE of step 1, FORA: steps left are no multiple of 3: 1",
        "COMPUTE, FORA: steps left are a multiple of 3: 0",
    ]
