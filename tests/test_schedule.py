"""Schedules: rules against a second implementation, and what written-out ones accept."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Action, BranchTable, Schedule, ScheduleError

FEW = settings(max_examples=50, deadline=None)
AGES = st.none() | st.integers(1, 6)
SITES = st.integers(1, 12)
STEPS = st.integers(1, 40)


def paths(num_sites):
    return [f"blocks.{i}.attn" for i in range(num_sites)]


def columns(table):
    """One text per site."""
    return ["".join(Action(a).letter for a in column) for column in table.actions.T]


def brute_column(may_reuse, max_age):
    """A column by the words of the rules, one step after another."""
    letters, kept = [], None
    for step, may in enumerate(may_reuse):
        fresh = kept is not None and (max_age is None or step - kept <= max_age)
        if may and fresh:
            letters.append("R")
            letters[kept] = "S"
        else:
            letters.append("C")
            kept = step
    return "".join(letters)


@st.composite
def linear_arguments(draw):
    num_steps, warmup = draw(STEPS), draw(st.integers(1, 8))
    full_from = draw(st.none() | st.integers(warmup, warmup + 40))
    named = {"full_from": full_from, "max_age": draw(AGES)}
    return num_steps, warmup, named


@st.composite
def interval_arguments(draw):
    named = {"warmup": draw(st.integers(1, 8)), "max_age": draw(AGES)}
    return draw(STEPS), draw(st.integers(1, 8)), named


@st.composite
def schedules(draw):
    """Any schedule that a rule gives."""
    if draw(st.booleans()):
        num_steps, warmup, named = draw(linear_arguments())
        return Schedule.linear(num_steps, warmup, **named)
    num_steps, every, named = draw(interval_arguments())
    return Schedule.interval(num_steps, every, **named)


# ---- what holds of every schedule --------------------------------------------------------


@FEW
@given(schedules(), SITES)
def test_schedule_resolves_to_a_verified_table_of_its_length(schedule, num_sites):
    table = schedule.resolve(paths(num_sites))
    assert table.actions.shape == (schedule.num_steps, num_sites)
    assert table.sites == tuple(paths(num_sites))
    assert BranchTable(table.actions, table.sites, schedule.max_age) == table


@FEW
@given(schedules(), SITES)
def test_schedule_first_step_never_reuses(schedule, num_sites):
    assert Action.REUSE not in schedule.resolve(paths(num_sites)).row(0)


@FEW
@given(schedules(), SITES)
def test_schedule_no_store_is_dead(schedule, num_sites):
    for column in columns(schedule.resolve(paths(num_sites))):
        assert "S" not in column.replace("SR", "")


@FEW
@given(schedules(), SITES)
def test_schedule_max_age_respected(schedule, num_sites):
    table = schedule.resolve(paths(num_sites))
    age = np.arange(table.num_steps)[:, None] - table.sources
    ages = age[table.actions == Action.REUSE]
    assert (ages >= 1).all()
    assert schedule.max_age is None or (ages <= schedule.max_age).all()


@FEW
@given(schedules(), SITES)
def test_schedule_resolved_twice_gives_equal_tables(schedule, num_sites):
    first, second = (schedule.resolve(paths(num_sites)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


@FEW
@given(schedules(), SITES)
def test_schedule_written_out_again_gives_the_same_table(schedule, num_sites):
    table = schedule.resolve(paths(num_sites))
    actions = table.actions
    for written in (columns(table), actions, actions == Action.REUSE, actions.tolist()):
        again = Schedule.from_actions(written, max_age=schedule.max_age)
        assert again.num_steps == schedule.num_steps
        assert again.resolve(paths(num_sites)) == table


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
    for site, column in enumerate(columns(table)):
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
    assert [column.index("R") for column in columns(table)] == [5, 10, 15]


def test_linear_single_site_starts_after_the_warm_up():
    (column,) = columns(Schedule.linear(8, 2).resolve(["attn"]))
    assert column == "CSRRRRRR"


def test_linear_age_limit_refreshes():
    (column,) = columns(Schedule.linear(9, 1, full_from=1, max_age=2).resolve(["attn"]))
    assert column == "SRRSRRSRR"


# ---- interval, compute_all ---------------------------------------------------------------


@FEW
@given(interval_arguments(), SITES)
def test_interval_equals_a_second_implementation(arguments, num_sites):
    num_steps, every, named = arguments
    table = Schedule.interval(num_steps, every, **named).resolve(paths(num_sites))
    last = named["warmup"] - 1
    mask = [step > last and (step - last) % every != 0 for step in range(num_steps)]
    assert columns(table) == [brute_column(mask, named["max_age"])] * num_sites


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
    assert columns(Schedule.interval(8, 3).resolve(["attn"])) == ["SRRSRRSR"]
    assert columns(Schedule.interval(8, 3, warmup=3).resolve(["attn"])) == ["CCSRRSRR"]
    assert columns(Schedule.interval(4, 1).resolve(["attn"])) == ["CCCC"]


@FEW
@given(STEPS, SITES)
def test_compute_all_has_one_row_of_computations(num_steps, num_sites):
    table = Schedule.compute_all(num_steps).resolve(paths(num_sites))
    assert table.rows == ((Action.COMPUTE,) * num_sites,)
    assert table.num_steps == num_steps
    assert table.reuse_ratio == 0.0


# ---- from_actions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("CCRRCRRC", ["CSRRSRRC"] * 2),
        ("CSRRSRRC", ["CSRRSRRC"] * 2),
        ("SCR", ["SCR"] * 2),
        (["CRRR", "CCCR"], ["SRRR", "CCSR"]),
        (("CRRR", "CCCR"), ["SRRR", "CCSR"]),
        ("CRRR\nCCCR", ["SRRR", "CCSR"]),
        (["CRRR"], ["SRRR"] * 2),
        ([False, True, True], ["SRR"] * 2),
        ([[False, False], [True, False], [True, True]], ["SRR", "CSR"]),
        (np.array([[0, 0], [1, 0], [2, 0]], np.int8), ["CSR", "CCC"]),
        ([Action.STORE, Action.REUSE], ["SR"] * 2),
        ([[Action.STORE, Action.COMPUTE], [Action.REUSE, Action.COMPUTE]], ["SR", "CC"]),
    ],
    ids=[
        "text",
        "text_with_stores",
        "compute_between",
        "texts",
        "tuple_of_texts",
        "lines",
        "one_text",
        "bools_per_step",
        "bools_per_site",
        "int8",
        "actions_per_step",
        "actions_per_site",
    ],
)
def test_from_actions_spellings(written, expected):
    schedule = Schedule.from_actions(written)
    table = schedule.resolve(paths(2))
    assert columns(table) == expected
    assert table.num_steps == schedule.num_steps == len(expected[0])


@FEW
@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_from_actions_bools_agree_with_letters(reuse):
    reuse[0] = False
    text = "".join("R" if r else "C" for r in reuse)
    by_text, by_bool = (
        Schedule.from_actions(written).resolve(paths(3)) for written in (text, np.array(reuse))
    )
    assert by_text == by_bool
    assert columns(by_text) == [brute_column(reuse, None)] * 3


def test_from_actions_equal_schedules_are_equal_and_hashable():
    assert Schedule.from_actions("CRR") == Schedule.from_actions(["CRR"])
    assert len({Schedule.from_actions("CRR"), Schedule.from_actions("CRR")}) == 1


@pytest.mark.parametrize(
    ("written", "max_age", "message"),
    [
        ("RCC", None, "step 0, site 0 (blocks.0.attn): REUSE, but no STORE comes before it"),
        (
            ["CCC", "CRC", "SRS"],
            None,
            "step 1, site 1 (blocks.1.attn): REUSE, but no STORE comes before it",
        ),
        ("SCC", None, "step 0, site 0 (blocks.0.attn): STORE, but no REUSE reads it"),
        ("CRRR", 2, "step 3, site 0 (blocks.0.attn): REUSE of an output older than max_age=2"),
        ("SCRC", 1, "step 2, site 0 (blocks.0.attn): REUSE of an output older than max_age=1"),
    ],
    ids=["reuse_first", "reuse_of_compute", "dead_store", "too_old", "too_old_with_stores"],
)
def test_from_actions_broken_rule_named_with_step_and_site(written, max_age, message):
    schedule = Schedule.from_actions(written, max_age=max_age)
    with pytest.raises(ScheduleError) as caught:
        schedule.resolve(paths(3))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "CRX",
            "step 2, site 0: 'X' is no action; known are C (COMPUTE), S (STORE), R (REUSE)",
        ),
        (["CRR", "CrR"], "step 1, site 1: 'r' is no action"),
        (["CRR", "CR"], "texts of one schedule need one length, found [3, 2]"),
        ([[0, 0], [0, 3]], "step 1, site 1: "),
        ("", "actions need shape [steps, sites] or [steps], found [0]"),
        ([], "actions need shape [steps, sites] or [steps], found [0]"),
        (np.zeros((2, 2, 2)), "actions need shape [steps, sites] or [steps], found [2, 2, 2]"),
        (np.zeros((3, 0)), "actions need shape [steps, sites] or [steps], found [3, 0]"),
    ],
    ids=[
        "letter",
        "lower_case",
        "lengths",
        "number",
        "no_text",
        "no_list",
        "three_dimensions",
        "no_sites",
    ],
)
def test_from_actions_malformed_says_what_was_found(written, message):
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_actions(written)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "written", [["CR", "CR"], np.zeros((2, 2), bool)], ids=["texts", "bools"]
)
def test_from_actions_other_number_of_sites_names_both(written):
    schedule = Schedule.from_actions(written)
    with pytest.raises(ScheduleError, match="has 2 sites but the model has 3"):
        schedule.resolve(paths(3))


# ---- arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.linear(0), "num_steps must be at least 1, found 0"),
        (lambda: Schedule.linear(-3), "num_steps must be at least 1, found -3"),
        (lambda: Schedule.linear(5.0), "num_steps must be an integer, found 5.0"),
        (lambda: Schedule.linear("5"), "num_steps must be an integer, found '5'"),
        (lambda: Schedule.linear(True), "num_steps must be an integer, found True"),
        (lambda: Schedule.linear(9, 0), "warmup must be at least 1, found 0"),
        (lambda: Schedule.linear(9, 2.5), "warmup must be an integer, found 2.5"),
        (lambda: Schedule.linear(9, full_from=4), "full_from must be at least 5, found 4"),
        (lambda: Schedule.linear(9, full_from=6.0), "full_from must be an integer, found 6.0"),
        (lambda: Schedule.linear(9, max_age=0), "max_age must be at least 1, found 0"),
        (lambda: Schedule.linear(9, max_age="2"), "max_age must be an integer, found '2'"),
        (lambda: Schedule.interval(0, 2), "num_steps must be at least 1, found 0"),
        (lambda: Schedule.interval(9, 0), "every must be at least 1, found 0"),
        (lambda: Schedule.interval(9, None), "every must be an integer, found None"),
        (lambda: Schedule.interval(9, 2, warmup=0), "warmup must be at least 1, found 0"),
        (lambda: Schedule.interval(9, 2, max_age=-1), "max_age must be at least 1, found -1"),
        (lambda: Schedule.compute_all(0), "num_steps must be at least 1, found 0"),
        (lambda: Schedule.compute_all(1.0), "num_steps must be an integer, found 1.0"),
        (
            lambda: Schedule.from_actions("CR", max_age=0),
            "max_age must be at least 1, found 0",
        ),
    ],
)
def test_schedule_argument_out_of_range_named_with_what_was_found(make, message):
    with pytest.raises(ScheduleError) as caught:
        make()
    assert str(caught.value) == message


def test_schedule_numpy_integers_accepted():
    by_numpy = Schedule.linear(np.int64(9), np.int32(2), full_from=np.int8(4))
    assert by_numpy.resolve(["a"]) == Schedule.linear(9, 2, full_from=4).resolve(["a"])


def test_linear_ties_round_half_up_without_float_noise():
    table = Schedule.linear(60, 1, full_from=22).resolve([str(i) for i in range(15)])
    starts = [int((table.actions[:, i] == Action.REUSE).argmax()) for i in range(15)]
    assert starts == [floor(1 + Fraction(21 * i, 14) + Fraction(1, 2)) for i in range(15)]


def test_schedule_other_length_than_its_text_rejected():
    with pytest.raises(ScheduleError):
        Schedule(5, Schedule.from_actions("CSR").rule).resolve(["a"])


def test_from_actions_ragged_is_a_schedule_error():
    with pytest.raises(ScheduleError):
        Schedule.from_actions([[True, False], [True]])
