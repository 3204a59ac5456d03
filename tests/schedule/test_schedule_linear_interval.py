"""Linear and interval schedules: against a second implementation, and written out."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dqar_fx import Action, Schedule
from tests.helpers.random_schedules import (
    FEW,
    SITES,
    STEPS,
    brute_column,
    interval_arguments,
    linear_arguments,
    paths,
)
from tests.helpers.table_texts import texts_of

# ---- linear ------------------------------------------------------------------------------


def possible_starts(site, num_sites, warmup, full_from):
    """The step at which a site starts to reuse; both neighbours where it is half-way."""
    exact = warmup + Fraction(site * (full_from - warmup), max(num_sites - 1, 1))
    half = exact.denominator == 2
    return {floor(exact), ceil(exact)} if half else {round(exact)}


@FEW
@given(linear_arguments(), SITES)
def test_linear_equals_a_second_implementation(arguments, num_sites):
    num_steps, warmup, named = arguments
    table = Schedule.linear(num_steps, warmup, **named).resolve(paths(num_sites))
    full_from = named["full_from"]
    if full_from is None:
        full_from = warmup + max(num_steps - warmup, 0) // 2
    for site, column in enumerate(texts_of(table)):
        starts = possible_starts(site, num_sites, warmup, full_from)
        masks = ([step >= start for step in range(num_steps)] for start in starts)
        assert column in {brute_column(mask, named["max_age"]) for mask in masks}


@FEW
@given(linear_arguments(), SITES)
def test_linear_warm_up_computes_everything(arguments, num_sites):
    num_steps, warmup, named = arguments
    table = Schedule.linear(num_steps, warmup, **named).resolve(paths(num_sites))
    assert (table.actions[:warmup] != Action.REUSE).all()


@FEW
@given(linear_arguments(), SITES)
def test_linear_without_age_limit_enables_from_shallow_to_deep_for_good(arguments, num_sites):
    num_steps, warmup, named = arguments
    schedule = Schedule.linear(num_steps, warmup, full_from=named["full_from"])
    reused = schedule.resolve(paths(num_sites)).actions == Action.REUSE
    assert (reused[1:] >= reused[:-1]).all()
    assert (reused[:, :-1] >= reused[:, 1:]).all()


@FEW
@given(linear_arguments(), SITES)
def test_linear_reuses_everything_from_full_from_on(arguments, num_sites):
    num_steps, warmup, named = arguments
    full_from = named["full_from"] or warmup + max(num_steps - warmup, 0) // 2
    schedule = Schedule.linear(num_steps, warmup, full_from=named["full_from"])
    table = schedule.resolve(paths(num_sites))
    last = full_from if num_sites > 1 else warmup
    assert (table.actions[last:] == Action.REUSE).all()


def test_linear_default_full_from_is_half_way_after_the_warm_up():
    table = Schedule.linear(25).resolve(paths(3))
    assert [column.index("R") for column in texts_of(table)] == [5, 10, 15]


def test_linear_single_site_starts_after_the_warm_up():
    (column,) = texts_of(Schedule.linear(8, 2).resolve(["attn"]))
    assert column == "CSRRRRRR"


def test_linear_age_limit_refreshes():
    (column,) = texts_of(Schedule.linear(9, 1, full_from=1, max_age=2).resolve(["attn"]))
    assert column == "SRRSRRSRR"


def test_linear_ties_round_half_up_without_float_noise():
    table = Schedule.linear(60, 1, full_from=22).resolve([str(i) for i in range(15)])
    starts = [int((table.actions[:, i] == Action.REUSE).argmax()) for i in range(15)]
    assert starts == [floor(1 + Fraction(21 * i, 14) + Fraction(1, 2)) for i in range(15)]


# ---- interval, compute_all ---------------------------------------------------------------


@FEW
@given(interval_arguments(), SITES)
def test_interval_equals_a_second_implementation(arguments, num_sites):
    num_steps, every, named = arguments
    table = Schedule.interval(num_steps, every, **named).resolve(paths(num_sites))
    last = named["warmup"] - 1
    mask = [step > last and (step - last) % every != 0 for step in range(num_steps)]
    assert texts_of(table) == [brute_column(mask, named["max_age"])] * num_sites


@FEW
@given(STEPS, st.integers(1, 8), st.integers(1, 8))
def test_interval_period_is_every(num_steps, every, warmup):
    table = Schedule.interval(num_steps, every, warmup=warmup).resolve(["attn"])
    computed = np.flatnonzero(table.actions[:, 0] != Action.REUSE)
    after = computed[computed >= warmup - 1]
    assert (np.diff(after) == every).all()
    assert computed[: len(computed) - len(after)].tolist() == list(
        range(min(warmup - 1, num_steps))
    )


def test_interval_written_out():
    assert texts_of(Schedule.interval(8, 3).resolve(["attn"])) == ["SRRSRRSR"]
    assert texts_of(Schedule.interval(8, 3, warmup=3).resolve(["attn"])) == ["CCSRRSRR"]
    assert texts_of(Schedule.interval(4, 1).resolve(["attn"])) == ["CCCC"]


@FEW
@given(STEPS, SITES)
def test_compute_all_has_one_row_of_computations(num_steps, num_sites):
    table = Schedule.compute_all(num_steps).resolve(paths(num_sites))
    assert table.rows == ((Action.COMPUTE,) * num_sites,)
    assert table.num_steps == num_steps
    assert table.reuse_ratio == 0.0
