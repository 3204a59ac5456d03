"""Schedules combined by ``&`` and ``|``, against a second implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Schedule, ScheduleError
from tests.helpers.random_schedules import AGES, FEW, SITES, STEPS, paths, schedules
from tests.helpers.table_texts import texts_of


def allowed_by(schedule, num_sites):
    """Where a schedule of `schedules` lets reuse, age aside: bools ``[sites][steps]``."""
    free = Schedule(schedule.num_steps, schedule.rule)
    table = free.resolve(paths(num_sites))
    return [[letter == "R" for letter in column] for column in texts_of(table)]


def brute_combination(schedules, join, num_sites):
    """Columns of several schedules, by walking: each looks at the age that is left."""
    allowed = [allowed_by(schedule, num_sites) for schedule in schedules]
    found = []
    for site in range(num_sites):
        letters, kept = ["C"], 0
        for step in range(1, schedules[0].num_steps):
            votes = [
                may[site][step] and (each.max_age is None or step - kept <= each.max_age)
                for each, may in zip(schedules, allowed, strict=True)
            ]
            if join(votes):
                letters.append("R")
                letters[kept] = "S"
            else:
                letters.append("C")
                kept = step
        found.append("".join(letters))
    return found


@st.composite
def several(draw, count):
    """Schedules of one length."""
    num_steps = draw(STEPS)
    return [
        Schedule.linear(num_steps, draw(st.integers(1, 8)), max_age=draw(AGES))
        if draw(st.booleans())
        else Schedule.interval(num_steps, draw(st.integers(1, 6)), max_age=draw(AGES))
        for _ in range(count)
    ]


@FEW
@given(several(2), SITES)
def test_combination_equals_a_second_implementation(pair, num_sites):
    one, other = pair
    for combined, join in ((one & other, all), (one | other, any)):
        table = combined.resolve(paths(num_sites))
        assert texts_of(table) == brute_combination(pair, join, num_sites)
        assert table.max_age is None


@settings(max_examples=20, deadline=None)
@given(several(3), st.integers(1, 5))
def test_combination_does_not_depend_on_order_or_brackets(three, num_sites):
    a, b, c = three
    groups = [
        [(a & b) & c, a & (b & c), c & b & a],
        [(a | b) | c, a | (b | c), c | b | a],
        [(a | b) & c, (a & c) | (b & c), c & (b | a)],
        [(a & b) | c, (a | c) & (b | c), c | (b & a)],
    ]
    for group in groups:
        first, *others = (each.resolve(paths(num_sites)) for each in group)
        assert all(table == first for table in others)


@FEW
@given(schedules(), SITES)
def test_combination_with_itself_or_a_neutral_one_changes_nothing(schedule, num_sites):
    sites, never = paths(num_sites), Schedule.compute_all(schedule.num_steps)
    always = Schedule.linear(schedule.num_steps, 1, full_from=1)
    expected = texts_of(schedule.resolve(sites))
    for combined in (schedule & schedule, schedule | schedule, schedule & always):
        assert texts_of(combined.resolve(sites)) == expected
    assert texts_of((schedule | never).resolve(sites)) == expected
    assert texts_of((schedule & never).resolve(sites)) == texts_of(never.resolve(sites))
    assert texts_of((schedule | always).resolve(sites)) == texts_of(always.resolve(sites))


def test_combination_written_out():
    one, other = Schedule.from_actions("CRRRCRRR"), Schedule.interval(8, 3)
    assert texts_of((one & other).resolve(["a"])) == ["SRRCSRSR"]
    assert texts_of((one | other).resolve(["a"])) == ["SRRRRRRR"]


def test_combination_written_out_per_site():
    one, other = Schedule.from_actions(["CRRC", "CCRR"]), Schedule.interval(4, 2)
    assert texts_of((one & other).resolve(paths(2))) == ["SRCC", "CCSR"]


def test_combination_age_limit_of_one_side_binds_that_side():
    free, young = Schedule.linear(7, 1, full_from=1), Schedule.interval(7, 9, max_age=2)
    assert texts_of((free & young).resolve(["a"])) == ["SRRSRRC"]
    assert texts_of((free | young).resolve(["a"])) == ["SRRRRRR"]


def test_combination_may_be_given_an_age_limit_of_its_own():
    combined = Schedule.linear(7, 1, full_from=1) & Schedule.interval(7, 9)
    limited = Schedule(7, combined.rule, max_age=3)
    table = limited.resolve(["a"])
    assert texts_of(table) == ["SRRRSRR"]
    assert table.max_age == 3


def test_combination_equal_schedules_are_equal_and_hashable():
    made = [Schedule.linear(9, 2, max_age=2) & Schedule.interval(9, 3) for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made)) == 1


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: a | b], ids=["and", "or"])
def test_combination_of_other_lengths_names_both(join):
    with pytest.raises(ScheduleError) as caught:
        join(Schedule.linear(9), Schedule.interval(8, 2))
    assert str(caught.value) == "schedules of 9 and 8 steps cannot be combined"


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: a | b], ids=["and", "or"])
@pytest.mark.parametrize("other", [None, True, "CRR", np.ones(3, bool)])
def test_combination_with_something_else_is_a_type_error(join, other):
    with pytest.raises(TypeError):
        join(Schedule.linear(3), other)
