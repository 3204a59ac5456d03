"""Schedules that are written out: the spellings, and what is wrong with others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqar_fx import Action, Schedule, ScheduleError
from tests.helpers.random_schedules import FEW, brute_column, paths
from tests.helpers.table_texts import texts_of

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
    assert texts_of(table) == expected
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
    assert texts_of(by_text) == [brute_column(reuse, None)] * 3


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


def test_from_actions_ragged_is_a_schedule_error():
    with pytest.raises(ScheduleError):
        Schedule.from_actions([[True, False], [True]])


# ---- forecasts ---------------------------------------------------------------------------


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
    assert texts_of(table) == [expected]
