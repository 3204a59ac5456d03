"""Schedules: rules against a second implementation, and what written-out ones accept."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Action, BranchTable, Schedule, ScheduleError
from dqar_fx.rules import Moment, Plain

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
            "step 2, site 0: 'X' is no action; "
            "known are C (COMPUTE), S (STORE), R (REUSE), F (FORECAST)",
        ),
        (["CRR", "CrR"], "step 1, site 1: 'r' is no action"),
        (["CRR", "CR"], "texts of one schedule need one length, found [3, 2]"),
        ([[0, 0], [0, 5]], "step 1, site 1: "),
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


# ---- combinations ------------------------------------------------------------------------


def allowed_by(schedule, num_sites):
    """Where a schedule of `schedules` lets reuse, age aside: bools ``[sites][steps]``."""
    free = Schedule(schedule.num_steps, schedule.rule)
    table = free.resolve(paths(num_sites))
    return [[letter == "R" for letter in column] for column in columns(table)]


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
        assert columns(table) == brute_combination(pair, join, num_sites)
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
    expected = columns(schedule.resolve(sites))
    for combined in (schedule & schedule, schedule | schedule, schedule & always):
        assert columns(combined.resolve(sites)) == expected
    assert columns((schedule | never).resolve(sites)) == expected
    assert columns((schedule & never).resolve(sites)) == columns(never.resolve(sites))
    assert columns((schedule | always).resolve(sites)) == columns(always.resolve(sites))


def test_combination_written_out():
    one, other = Schedule.from_actions("CRRRCRRR"), Schedule.interval(8, 3)
    assert columns((one & other).resolve(["a"])) == ["SRRCSRSR"]
    assert columns((one | other).resolve(["a"])) == ["SRRRRRRR"]


def test_combination_written_out_per_site():
    one, other = Schedule.from_actions(["CRRC", "CCRR"]), Schedule.interval(4, 2)
    assert columns((one & other).resolve(paths(2))) == ["SRCC", "CCSR"]


def test_combination_age_limit_of_one_side_binds_that_side():
    free, young = Schedule.linear(7, 1, full_from=1), Schedule.interval(7, 9, max_age=2)
    assert columns((free & young).resolve(["a"])) == ["SRRSRRC"]
    assert columns((free | young).resolve(["a"])) == ["SRRRRRR"]


def test_combination_may_be_given_an_age_limit_of_its_own():
    combined = Schedule.linear(7, 1, full_from=1) & Schedule.interval(7, 9)
    limited = Schedule(7, combined.rule, max_age=3)
    table = limited.resolve(["a"])
    assert columns(table) == ["SRRRSRR"]
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


class Wrong(Plain):
    """A rule that answers for another number of sites."""

    def may_reuse(self, moment):
        return np.ones(len(moment.sites) + 1, bool)


def test_schedule_rule_of_a_wrong_shape_named_with_its_step():
    schedule = Schedule(4, Wrong())
    with pytest.raises(ScheduleError, match=r"of shape \[3\] at step 1.* each of 2 sites"):
        schedule.resolve(paths(2))


class Listening(Plain):
    """A rule that reuses twice after each computation, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def may_reuse(self, moment):
        self.asked.append(moment)
        return moment.age <= np.arange(1, len(moment.sites) + 1)


def test_schedule_rule_is_asked_once_per_step_with_the_age_of_each_site():
    rule = Listening()
    table = Schedule(6, rule).resolve(["a", "b"])
    assert columns(table) == ["SRSRSR", "SRRSRR"]
    assert [moment.step for moment in rule.asked] == [1, 2, 3, 4, 5]
    assert {(moment.num_steps, moment.sites) for moment in rule.asked} == {(6, ("a", "b"))}
    assert [moment.age.tolist() for moment in rule.asked] == table.ages[1:].tolist()
    assert all(isinstance(moment, Moment) for moment in rule.asked)


# ---- forecasts, written out --------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "orders", "expected"),
    [
        ("CCCFF", 1, "CSSFF"),
        ("CCCFF", 2, "SSSFF"),
        ("CCRCF", 1, "CSRSF"),
        ("CCCRF", [[0], [0], [0], [0], [1]], "CSSRF"),
    ],
)
def test_from_actions_forecast_stores_as_many_outputs_as_its_order_reads(
    written, orders, expected
):
    table = Schedule.from_actions(written, orders=orders).resolve(["a"])
    assert columns(table) == [expected]
