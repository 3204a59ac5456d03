"""Other systems' rules for layers: each again, as the loop with counters that it is there."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqar_fx import Schedule
from dqar_fx.prior_art import fora, smoothcache, taylorseer
from tests.helpers.prior_art_decisions import (
    FEW,
    MODEL,
    computed,
    error_of,
    layers_measured,
    reasons_of,
    text_of,
)
from tests.helpers.table_texts import texts_of

STEPS, EVERY = st.integers(1, 40), st.integers(1, 8)


# ---- FORA --------------------------------------------------------------------------------


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


# ---- TaylorSeer --------------------------------------------------------------------------


def taylorseer_run(num_steps, every, order, first):
    """Letters and orders, by the counter and the factors that its DiT code has."""
    counter = factors = 0
    letters, orders = [], []
    for step in reversed(range(num_steps)):
        if step > num_steps - first - 1 or counter == every - 1:
            counter, grown = 0, 1
            for power in range(order):
                if power >= factors or step >= num_steps - first + 1:
                    break
                grown += 1
            factors = grown
            letters.append("C")
            orders.append(0)
        else:
            counter += 1
            letters.append("F" if factors > 1 else "R")
            orders.append(factors - 1)
    return "".join(letters), orders


@FEW
@given(STEPS, EVERY, st.integers(0, 3), st.integers(1, 6))
def test_taylorseer_equals_its_counter_and_its_factors(num_steps, every, order, first):
    schedule = taylorseer(num_steps, every, order, first=first)
    letters, orders = taylorseer_run(num_steps, every, order, first)
    table = schedule.resolve(["a", "b"])
    assert [text.replace("S", "C") for text in texts_of(table)] == [letters] * 2
    assert table.orders.T.tolist() == [orders] * 2
    assert table.method == "taylor"
    assert schedule.sites == "all"


@FEW
@given(STEPS, EVERY, st.integers(1, 6), st.integers(0, 6))
def test_taylorseer_start_moves_the_phase(num_steps, every, first, later):
    found = computed(taylorseer(num_steps, every, first=first, start=first + later))
    again = range(first + later, num_steps, every)
    assert found == sorted({*range(min(first, num_steps)), *again})


def test_taylorseer_golden():
    assert text_of(taylorseer(10)) == "SSFFFSFFFC"
    assert text_of(taylorseer(12, 3, 2, first=3)) == "CSSFFSFFSFFC"
    assert text_of(taylorseer(7, 3, 1, first=1)) == "SRRSFFC"
    assert text_of(taylorseer(7, 3, 0, first=2)) == "CSRRSRR"
    orders = taylorseer(12, 3, 2, first=3).resolve(["a"]).orders[:, 0]
    assert orders.tolist() == [0, 0, 0, 1, 1, 0, 2, 2, 0, 2, 2, 0]


def test_taylorseer_as_reuse_is_the_interval():
    for every in range(1, 5):
        for first in range(1, 4):
            reused = text_of(taylorseer(13, every, 0, first=first))
            assert reused == text_of(Schedule.interval(13, every, warmup=first))


def test_taylorseer_says_why():
    assert reasons_of(taylorseer(5, 3, 2)) == [
        "STORE, TaylorSeer: full steps are the first 2",
        "STORE, TaylorSeer: full steps are the first 2",
        "FORECAST of order 1 from step 1, "
        "TaylorSeer: order 2, full steps to take differences of: 2",
        "FORECAST of order 1 from step 1, "
        "TaylorSeer: order 2, full steps to take differences of: 2",
        "COMPUTE, TaylorSeer: full steps are each 3-th from 4 on",
    ]


# ---- SmoothCache -------------------------------------------------------------------------


def smoothcache_scan(change, threshold, lookahead):
    """1 and 0 per step, by its scan over rows of errors: ``change[step][layer][age - 1]``."""
    steps = len(change)
    rows = [
        [np.mean(change[start + age, :, age - 1]) for start in range(steps - age)]
        for age in range(1, min(lookahead, steps - 1) + 1)
    ]
    plan, step = [1] * steps, 0
    while step < steps:
        far = [age for age, row in enumerate(rows, 1) if step < len(row)]
        good = [age for age in far if rows[age - 1][step] <= threshold]
        skipped = max(good, default=0)
        for after in range(step + 1, step + 1 + skipped):
            plan[after] = 0
        step += skipped + 1
    plan[0] = plan[-1] = 1
    return plan


@FEW
@given(
    st.integers(0, 10**6),
    st.integers(1, 25),
    st.floats(0, 0.5),
    st.integers(1, 4),
    st.booleans(),
)
def test_smoothcache_equals_its_scan(seed, steps, threshold, lookahead, reverse):
    calibration = layers_measured(seed, steps)
    schedule = smoothcache(calibration, threshold, lookahead=lookahead)
    order = calibration.sites[::-1] if reverse else calibration.sites
    table = schedule.resolve(order)
    for path, text in zip(order, texts_of(table), strict=True):
        layers = [i for i, site in enumerate(calibration.sites) if site[-2:] == path[-2:]]
        plan = smoothcache_scan(calibration.change[:, layers], threshold, lookahead)
        assert [int(letter != "R") for letter in text] == plan
    assert schedule.sites == calibration.sites


def golden_calibration():
    """Two layers, all near; but nothing is like step 0, nor step 4 like those before 1."""
    calibration = layers_measured(0, 8, blocks=2, ends=("ff",))
    change = calibration.change
    change[~np.isnan(change)] = 0.1
    change[[1, 2, 3], :, [0, 1, 2]] = 0.4
    change[4] = [[0.4, 0.4, 0.0, 0.4], [0.4, 0.4, 0.2, 0.4]]
    return calibration


def test_smoothcache_golden():
    """From step 1 to 4 counts the mean of 0.0 and 0.2."""
    calibration = golden_calibration()
    for lookahead, expected in ((3, "CSRRRSRC"), (2, "CSRRSRRC"), (1, "CSRCSRCC")):
        schedule = smoothcache(calibration, 0.1, lookahead=lookahead)
        assert texts_of(schedule.resolve(calibration.sites)) == [expected] * 2


def test_smoothcache_says_why():
    calibration = golden_calibration()
    table = smoothcache(calibration, 0.1, lookahead=2).resolve(calibration.sites)
    assert [table.why(step, 1).partition(": ")[2] for step in range(8)] == [
        "COMPUTE, nothing is kept yet",
        "STORE, mean change of ff from step 0 to step 1 is 0.4, beyond 0.1",
        "REUSE of step 1, mean change of ff from step 1 to step 3 is 0.1, within 0.1",
        "REUSE of step 1, mean change of ff from step 1 to step 3 is 0.1, within 0.1",
        "STORE, SmoothCache skips at most 2 steps in a row",
        "REUSE of step 4, mean change of ff from step 4 to step 6 is 0.1, within 0.1",
        "REUSE of step 4, mean change of ff from step 4 to step 6 is 0.1, within 0.1",
        "COMPUTE, SmoothCache computes the last step",
    ]


def test_smoothcache_means_are_of_all_calibrated_layers_of_a_component():
    calibration = layers_measured(3, 20, blocks=4)
    schedule = smoothcache(calibration, 0.2)
    whole = schedule.resolve(calibration.sites)
    part = schedule.resolve(calibration.sites[2:5])
    assert np.array_equal(part.actions, whole.actions[:, 2:5])
    assert len(set(texts_of(whole)[::2])) == 1
    assert texts_of(whole)[0] != texts_of(whole)[1]


def test_smoothcache_of_blocks_takes_all_of_a_list_for_one_component():
    blocks = layers_measured(5, 15, blocks=1, ends=("0", "1", "2"))
    table = smoothcache(blocks, 0.25).resolve(blocks.sites)
    assert len(set(texts_of(table))) == 1
    reused = texts_of(table)[0].index("R")
    assert "mean change of blocks from step" in table.why(reused, 2)


def test_smoothcache_change_that_is_no_number_is_not_reused():
    calibration = layers_measured(1, 6, ages=1)
    calibration.change[3, 0] = np.nan
    pair = ("blocks.1.attn1", "blocks.1.ff")
    text, other = texts_of(smoothcache(calibration, 9.0, lookahead=1).resolve(pair))
    assert (text, other) == ("SRCSRC", "SRSRCC")


def test_smoothcache_refuses_another_model():
    schedule = smoothcache(layers_measured(0, 5), 0.1)
    schedule.refuse_other_model(MODEL)
    said = error_of(lambda: schedule.refuse_other_model(torch.nn.Linear(3, 2)))
    assert "the SmoothCache schedule was measured on another model" in said


def test_smoothcache_unknown_site():
    schedule = smoothcache(layers_measured(0, 5), 0.1)
    said = error_of(lambda: schedule.resolve(["blocks.9.attn1"]))
    assert "1 sites were not calibrated, such as blocks.9.attn1" in said
