"""The branch table: what it accepts, what it tells, and what its errors say."""

import dataclasses

import numpy as np
import pytest
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Action, BranchTable, Schedule, ScheduleError
from dqar_fx.schedule.table import NEVER
from tests.helpers.table_texts import NUMBER, repaired, table_of, valid_columns

FEW = settings(max_examples=50, deadline=None)


def brute_source(column, step):
    """The step that a reuse reads, found by walking back."""
    if column[step] != "R":
        return NEVER
    return max(k for k in range(step) if column[k] == "S")


@FEW
@given(valid_columns())
def test_table_valid_columns_accepted_and_kept(columns):
    table = table_of(*columns)
    assert table.num_steps == len(columns[0])
    found = ["".join(Action(a).letter for a in column) for column in table.actions.T]
    assert found == columns


@FEW
@given(valid_columns())
def test_table_sources_lead_to_the_latest_store(columns):
    sources = table_of(*columns).sources
    for site, column in enumerate(columns):
        assert sources[:, site].tolist() == [
            brute_source(column, step) for step in range(len(column))
        ]


@FEW
@given(valid_columns())
def test_table_rows_are_the_distinct_steps_in_order(columns):
    table = table_of(*columns)
    steps = [table.row(step) for step in range(table.num_steps)]
    assert set(table.rows) == set(steps)
    assert [steps.index(row) for row in table.rows] == sorted(map(steps.index, set(steps)))
    assert all(isinstance(action, Action) for row in table.rows for action in row)


@FEW
@given(valid_columns(), st.data())
def test_table_one_letter_changed_accepted_only_if_the_rules_hold(columns, data):
    site = data.draw(st.integers(0, len(columns) - 1))
    column = data.draw(st.text("CSR", min_size=len(columns[0]), max_size=len(columns[0])))
    changed = [*columns[:site], column, *columns[site + 1 :]]
    if repaired(column) == column:
        assert table_of(*changed).num_steps == len(column)
    else:
        with pytest.raises(ScheduleError, match=rf"site {site} \(site_{site}\)"):
            table_of(*changed)


def test_table_actions_are_int8_and_read_only():
    table = table_of("SR", "CC")
    assert table.actions.dtype == np.int8
    with pytest.raises(ValueError, match="read-only"):
        table.actions[0, 0] = 0


def test_table_actions_are_a_copy():
    given = np.array([[1], [2]], np.int8)
    table = BranchTable(given, ("a",))
    given[:] = 0
    assert table.actions.tolist() == [[1], [2]]


def test_table_fields_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        table_of("C").sites = ("b",)


def test_table_equal_by_value():
    assert table_of("SR") == table_of("SR")
    assert hash(table_of("SR")) == hash(table_of("SR"))
    assert len({table_of("SRR"), table_of("SRR"), table_of("SRC")}) == 2


@pytest.mark.parametrize(
    "other",
    [
        table_of("SRC"),
        table_of("SRR", max_age=2),
        BranchTable([[1], [2], [2]], ("b",)),
        "SRR",
    ],
    ids=["actions", "max_age", "sites", "type"],
)
def test_table_unequal_in_any_part(other):
    assert table_of("SRR") != other


def test_table_reuse_ratio_counts_cells():
    assert table_of("SRRR", "CCCC").reuse_ratio == 3 / 8


def test_table_compute_between_store_and_reuse_reads_the_store():
    assert table_of("SCR").sources.T.tolist() == [[NEVER, NEVER, 0]]


def test_table_printed_as_the_reports_diagram():
    columns = ["CSRRSRRRRRRR", "CCSRSRRRRRRR", "CCCCSRRRRRRR"]
    actions = [[NUMBER[letter] for letter in step] for step in zip(*columns, strict=True)]
    table = BranchTable(actions, ("blocks.0.attn", "blocks.1.attn", "blocks.10.attn"))
    assert_expected_inline(
        str(table),
        """\
12 steps x 3 sites, 6 distinct rows, reuse ratio 0.667
C compute, S compute and store, R reuse
          step  0         10
 blocks.0.attn  CSRRSRRRRRRR
 blocks.1.attn  CCSRSRRRRRRR
blocks.10.attn  CCCCSRRRRRRR""",
    )


@pytest.mark.parametrize(
    ("columns", "max_age", "message"),
    [
        (
            ["SRR", "RSR"],
            None,
            "step 0, site 1 (site_1): REUSE, but no STORE comes before it. "
            "Its actions are RSR; 1 cells of the table break this rule",
        ),
        (
            ["CRR", "CCC"],
            None,
            "step 1, site 0 (site_0): REUSE, but no STORE comes before it. "
            "Its actions are CRR; 2 cells of the table break this rule",
        ),
        (
            ["SSR", "SRS"],
            None,
            "step 0, site 0 (site_0): STORE, but no REUSE reads it. "
            "Its actions are SSR; 2 cells of the table break this rule",
        ),
        (
            ["SRRR"],
            2,
            "step 3, site 0 (site_0): REUSE of an output older than max_age=2 steps. "
            "Its actions are SRRR; 1 cells of the table break this rule",
        ),
        (
            ["SRSCCR"],
            2,
            "step 5, site 0 (site_0): REUSE of an output older than max_age=2 steps. "
            "Its actions are SRSCCR; 1 cells of the table break this rule",
        ),
    ],
    ids=["reuse_first", "reuse_of_compute", "dead_store", "too_old", "too_old_after_compute"],
)
def test_table_broken_rule_named_with_step_and_site(columns, max_age, message):
    with pytest.raises(ScheduleError) as caught:
        table_of(*columns, max_age=max_age)
    assert str(caught.value) == message


@pytest.mark.parametrize("number", [5, -1, 7])
def test_table_unknown_action_rejected(number):
    with pytest.raises(ScheduleError) as caught:
        BranchTable(np.array([[0, 0], [0, number]]), ("a", "b"))
    message = str(caught.value)
    assert message.startswith("step 1, site 1 (b): unknown action")
    assert str(number) in message
    assert message.endswith("known are COMPUTE 0, STORE 1, REUSE 2, FORECAST 3, COVERED 4")


@pytest.mark.parametrize(
    ("actions", "shape"),
    [
        (np.zeros((4, 3), np.int8), "[4, 3]"),
        (np.zeros((2, 4), np.int8), "[2, 4]"),
        (np.zeros(2, np.int8), "[2]"),
        (np.zeros((4, 2, 1), np.int8), "[4, 2, 1]"),
    ],
)
def test_table_wrong_shape_names_found_and_expected(actions, shape):
    with pytest.raises(ScheduleError) as caught:
        BranchTable(actions, ("a", "b"))
    assert str(caught.value) == (
        f"a branch table needs shape [steps, 2], one column per site, but has shape {shape}"
    )


def test_table_scale_not_cut():
    assert "10" in str(Schedule.interval(11, 3).resolve(["a"])).splitlines()[2]


@pytest.mark.parametrize("shape", [(0, 1), (3, 0)])
def test_table_without_sites_or_steps_rejected(shape):
    with pytest.raises(ScheduleError, match="needs a step and a site"):
        BranchTable(np.zeros(shape, np.int8), ("a",) * shape[1])


# ---- ages --------------------------------------------------------------------------------


def brute_ages(column):
    """Steps since the last one that did not reuse, found by walking."""
    ages, computed = [0], 0
    for step in range(1, len(column)):
        ages.append(step - computed)
        if column[step] != "R":
            computed = step
    return ages


@FEW
@given(valid_columns())
def test_table_ages_count_from_the_last_computation(columns):
    ages = table_of(*columns).ages
    assert ages.T.tolist() == [brute_ages(column) for column in columns]


@FEW
@given(valid_columns())
def test_table_age_of_a_reuse_is_that_of_its_source_unless_a_compute_lies_between(columns):
    table = table_of(*columns)
    for step, site in np.argwhere(table.actions == Action.REUSE):
        source = table.sources[step, site]
        between = "C" in columns[site][source:step]
        assert (step - table.ages[step, site] == source) == (not between)
