"""The branch table: what it accepts, what it tells, and what its errors say."""

import dataclasses
import json

import numpy as np
import pytest
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import (
    Action,
    BranchTable,
    Schedule,
    ScheduleError,
    entropy_gate,
    policy_gate,
    snr_gate,
)
from dqar_fx.table import NEVER
from tests.test_gates import Levels, random_calibration, random_policy

FEW = settings(max_examples=50, deadline=None)
NUMBER = {action.letter: action.value for action in Action}


def table_of(*columns, max_age=None):
    """A table of one text per site."""
    actions = [[NUMBER[letter] for letter in step] for step in zip(*columns, strict=True)]
    return BranchTable(actions, tuple(f"site_{i}" for i in range(len(columns))), max_age)


@st.composite
def valid_columns(draw):
    """Texts of one length that keep the rules: C, or S followed by reuses among computes."""
    length = draw(st.integers(1, 12))
    return [draw(valid_column(length)) for _ in range(draw(st.integers(1, 4)))]


def valid_column(length):
    return st.text("CSR", min_size=length, max_size=length).map(repaired)


def repaired(text):
    """A text with reuses of nothing and stores for nobody made computations."""
    letters, source = list(text), None
    for step, letter in enumerate(text):
        if letter == "R" and source is None:
            letters[step] = "C"
        source = step if letter == "S" else source
    for step, letter in enumerate(letters):
        later = "".join(letters[step + 1 :]).split("S", 1)[0]
        if letter == "S" and "R" not in later:
            letters[step] = "C"
    return "".join(letters)


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


def test_table_ruler_not_cut():
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


# ---- why ---------------------------------------------------------------------------------


def said(schedule, *cells, paths=("a", "b", "c", "d")):
    """What the table says of cells, without where they are."""
    table = schedule.resolve(paths)
    for step, site in cells:
        start = f"step {step}, site {site} ({paths[site]}): "
        assert table.why(step, site).startswith(start)
        assert table.why(step, paths[site]) == table.why(step, site)
    return [table.why(step, site).split("): ", 1)[1] for step, site in cells]


def test_why_tells_where_the_cell_is():
    table = Schedule.interval(4, 2).resolve(["blocks.0.attn", "blocks.1.attn"])
    expected = (
        "step 1, site 1 (blocks.1.attn): REUSE of step 0, step 1 of 1 between computed ones"
    )
    assert table.why(1, 1) == table.why(1, "blocks.1.attn") == expected
    assert table.why(np.int64(1), np.int64(1)) == expected


def test_why_linear_tells_the_sites_first_step():
    schedule = Schedule.linear(12, 3, full_from=9)
    assert said(schedule, (0, 0), (2, 0), (3, 0), (3, 2), (6, 2), (7, 2), (11, 3)) == [
        "COMPUTE, nothing is kept yet",
        "STORE, the first 3 steps are warm-up",
        "REUSE of step 2, the linear schedule reuses this site from step 3 on",
        "COMPUTE, the linear schedule computes this site before step 7",
        "STORE, the linear schedule computes this site before step 7",
        "REUSE of step 6, the linear schedule reuses this site from step 7 on",
        "REUSE of step 8, the linear schedule reuses this site from step 9 on",
    ]


def test_why_interval_tells_the_place_between_computed_steps():
    schedule = Schedule.interval(9, 3, warmup=2)
    assert said(schedule, (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)) == [
        "COMPUTE, nothing is kept yet",
        "STORE, the first 2 steps are warm-up",
        "REUSE of step 1, step 1 of 2 between computed ones",
        "REUSE of step 1, step 2 of 2 between computed ones",
        "STORE, each 3-th step after the warm-up computes",
        "REUSE of step 4, step 1 of 2 between computed ones",
    ]


def test_why_compute_all_tells_that_all_is_warm_up():
    assert said(Schedule.compute_all(3), (0, 0), (1, 0), (2, 3)) == [
        "COMPUTE, nothing is kept yet",
        "COMPUTE, the first 3 steps are warm-up",
        "COMPUTE, the first 3 steps are warm-up",
    ]


def test_why_refresh_by_age_tells_the_age_and_its_limit():
    schedule = Schedule.linear(9, 1, full_from=1, max_age=2)
    assert said(schedule, (1, 0), (2, 0), (3, 0), (4, 0)) == [
        "REUSE of step 0, the linear schedule reuses this site from step 1 on",
        "REUSE of step 0, the linear schedule reuses this site from step 1 on",
        "STORE, what is kept is 3 steps old, beyond max_age=2",
        "REUSE of step 3, the linear schedule reuses this site from step 1 on",
    ]


def test_why_refresh_that_the_rule_asks_for_anyway_names_the_rule():
    schedule = Schedule.interval(8, 3, max_age=2)
    assert said(schedule, (3, 0)) == ["STORE, each 3-th step after the warm-up computes"]


def test_why_written_out_tells_the_letter():
    assert said(Schedule.from_actions("CCRRC"), (0, 0), (1, 0), (2, 1), (4, 3)) == [
        "COMPUTE, written out: C",
        "STORE, written out: C",
        "REUSE of step 1, written out: R",
        "COMPUTE, written out: C",
    ]
    assert said(Schedule.from_actions("SCR", max_age=2), (0, 0), (1, 0), (2, 0)) == [
        "STORE, written out: S",
        "COMPUTE, written out: C",
        "REUSE of step 0, written out: R",
    ]


def test_why_written_out_per_site_tells_that_sites_letter():
    schedule = Schedule.from_actions(["CRC", "CCR"])
    assert said(schedule, (1, 0), (1, 1), (2, 1), paths="ab") == [
        "REUSE of step 0, written out: R",
        "STORE, written out: C",
        "REUSE of step 1, written out: R",
    ]


def test_why_snr_gate_tells_the_ratio_or_its_change():
    levels = Levels(np.array([0.01, 0.02, 0.5, 0.75, 4.0, 5.0, 80.0]))
    schedule = snr_gate(levels, 7, min_snr=0.1, max_snr=40.0, max_change=1.0, max_age=1)
    assert said(schedule, *((step, 0) for step in range(7))) == [
        "COMPUTE, nothing is kept yet",
        "COMPUTE, SNR 0.02 is below 0.1",
        "STORE, log SNR has changed by 3.22, more than 1",
        "REUSE of step 2, SNR 0.75 is in the window, log SNR changed by 0.405",
        "STORE, log SNR has changed by 2.08, more than 1",
        "REUSE of step 4, SNR 5 is in the window, log SNR changed by 0.223",
        "COMPUTE, SNR 80 is above 40",
    ]
    without = snr_gate(levels, 7, min_snr=0.1)
    assert said(without, (2, 0)) == ["REUSE of step 1, SNR 0.5 is in the window"]


def measured(entropy):
    """A calibration with these entropies, ``[steps][sites]``."""
    rows = np.array(entropy)
    return dataclasses.replace(random_calibration(0, *rows.shape, 2), entropy=rows)


def test_why_entropy_gate_tells_the_entropy_and_the_threshold():
    calibration = measured([[0.9, 0.1], [0.9, 0.2], [0.25, 0.5], [0.8, 0.125]])
    cells, paths = [(1, 0), (1, 1), (2, 0), (2, 1)], calibration.sites
    assert said(entropy_gate(calibration, 0.5), (0, 0), *cells, paths=paths) == [
        "STORE, nothing is kept yet",
        "REUSE of step 0, attention entropy 0.900 is at least 0.500",
        "STORE, attention entropy 0.200 is below 0.500",
        "STORE, attention entropy 0.250 is below 0.500",
        "REUSE of step 1, attention entropy 0.500 is at least 0.500",
    ]
    assert said(entropy_gate(calibration, 0.5, reuse="below"), *cells, paths=paths) == [
        "STORE, attention entropy 0.900 is at least 0.500",
        "REUSE of step 0, attention entropy 0.200 is below 0.500",
        "REUSE of step 1, attention entropy 0.250 is below 0.500",
        "STORE, attention entropy 0.500 is at least 0.500",
    ]


def test_why_policy_gate_tells_the_prediction_its_age_and_the_limit():
    policy = random_policy(0, 5, 1, 2)
    policy.predicted[:] = [[[1e-3, 2e-2]]]
    paths = policy.sites
    assert said(policy_gate(policy, 1e-2), *((step, 0) for step in range(4)), paths=paths) == [
        "STORE, nothing is kept yet",
        "REUSE of step 0, predicted error 1.00e-03 at age 1 is within 1.00e-02",
        "STORE, predicted error 2.00e-02 at age 2 is beyond 1.00e-02",
        "REUSE of step 2, predicted error 1.00e-03 at age 1 is within 1.00e-02",
    ]
    assert said(policy_gate(policy, 1.0), (3, 0), paths=paths) == [
        "STORE, age 3 is beyond the 2 steps that were calibrated"
    ]


def test_why_both_gives_who_refuses_or_all_who_allow():
    schedule = Schedule.interval(8, 3, warmup=2) & Schedule.linear(8, 3, full_from=6)
    assert said(schedule, (0, 0), (1, 0), (2, 0), (3, 0), (3, 3), (4, 0), (4, 3)) == [
        "COMPUTE, nothing is kept yet",
        "COMPUTE, the first 2 steps are warm-up; the first 3 steps are warm-up",
        "STORE, the first 3 steps are warm-up",
        "REUSE of step 2, step 2 of 2 between computed ones; "
        "the linear schedule reuses this site from step 3 on",
        "COMPUTE, the linear schedule computes this site before step 6",
        "STORE, each 3-th step after the warm-up computes",
        "COMPUTE, each 3-th step after the warm-up computes; "
        "the linear schedule computes this site before step 6",
    ]


def test_why_either_gives_who_allows_or_all_who_refuse():
    schedule = Schedule.interval(8, 3, warmup=2) | Schedule.linear(8, 3, full_from=6)
    assert said(schedule, (1, 0), (2, 3), (3, 0), (4, 0), (4, 3)) == [
        "STORE, the first 2 steps are warm-up; the first 3 steps are warm-up",
        "REUSE of step 1, step 1 of 2 between computed ones",
        "REUSE of step 1, step 2 of 2 between computed ones; "
        "the linear schedule reuses this site from step 3 on",
        "REUSE of step 1, the linear schedule reuses this site from step 3 on",
        "STORE, each 3-th step after the warm-up computes; "
        "the linear schedule computes this site before step 6",
    ]


def test_why_combination_with_an_age_limit_tells_the_age():
    schedule = Schedule.linear(7, 1, full_from=1, max_age=2) & Schedule.interval(7, 9)
    assert said(schedule, (2, 0), (3, 0), (4, 0)) == [
        "REUSE of step 0, the linear schedule reuses this site from step 1 on; "
        "what is kept is 2 steps old, within max_age=2; step 2 of 8 between computed ones",
        "STORE, what is kept is 3 steps old, beyond max_age=2",
        "REUSE of step 3, the linear schedule reuses this site from step 1 on; "
        "what is kept is 1 steps old, within max_age=2; step 4 of 8 between computed ones",
    ]


def test_why_combination_of_a_gate_and_a_rule_gives_both():
    calibration = measured([[0.9], [0.9], [0.2], [0.9]])
    schedule = entropy_gate(calibration, 0.5) & Schedule.linear(4, 2, full_from=2)
    assert said(schedule, (1, 0), (2, 0), (3, 0), paths=calibration.sites) == [
        "COMPUTE, the first 2 steps are warm-up",
        "STORE, attention entropy 0.200 is below 0.500",
        "REUSE of step 2, attention entropy 0.900 is at least 0.500; "
        "the linear schedule reuses this site from step 2 on",
    ]


def test_why_combination_with_a_written_out_schedule_gives_its_letter():
    schedule = Schedule.from_actions("CRRRC") & Schedule.interval(5, 3)
    assert said(schedule, (0, 0), (1, 0), (3, 0), (4, 0)) == [
        "STORE, nothing is kept yet",
        "REUSE of step 0, written out: R; step 1 of 2 between computed ones",
        "COMPUTE, each 3-th step after the warm-up computes",
        "COMPUTE, written out: C",
    ]


def test_why_without_a_schedule_tells_that_it_was_given():
    table = table_of("SRC")
    assert [table.why(step, 0) for step in range(3)] == [
        "step 0, site 0 (site_0): STORE, as given",
        "step 1, site 0 (site_0): REUSE of step 0, as given",
        "step 2, site 0 (site_0): COMPUTE, as given",
    ]


@FEW
@given(valid_columns())
def test_why_written_out_never_raises(columns):
    for table in (
        table_of(*columns),
        Schedule.from_actions(columns).resolve([f"s{i}" for i in range(len(columns))]),
    ):
        for step, site in np.ndindex(table.actions.shape):
            action = Action(table.actions[step, site]).name
            assert f"): {action}" in table.why(step, site)


@pytest.mark.parametrize("site", [2, -1, "site_2", "", "site_*"])
def test_why_unknown_site_names_the_known_ones(site):
    with pytest.raises(ScheduleError) as caught:
        table_of("SR", "CC").why(0, site)
    assert str(caught.value) == (f"no site {site!r}: the branch table has 2, site_0 to site_1")


@pytest.mark.parametrize("step", [2, -1, 99])
def test_why_unknown_step_tells_how_many_there_are(step):
    with pytest.raises(ScheduleError) as caught:
        table_of("SR").why(step, 0)
    assert str(caught.value) == f"no step {step}: the branch table has 2"


def test_why_path_that_looks_like_a_number_is_a_path():
    table = Schedule.interval(2, 2).resolve(["1", "0"])
    assert table.why(1, "1").startswith("step 1, site 0 (1): ")
    assert table.why(1, 1).startswith("step 1, site 1 (0): ")


def test_table_reason_does_not_count_for_equality():
    by_rule = Schedule.interval(3, 3).resolve(["a"])
    by_hand = BranchTable(by_rule.actions, ("a",))
    assert by_rule == by_hand
    assert hash(by_rule) == hash(by_hand)
    assert "reason" not in repr(by_rule)


# ---- files -------------------------------------------------------------------------------


@FEW
@given(columns=valid_columns(), max_age=st.none() | st.just(20))
def test_table_saved_and_loaded_is_the_same(tmp_path_factory, columns, max_age):
    path = tmp_path_factory.mktemp("table") / "table.json"
    table = table_of(*columns, max_age=max_age)
    table.save(path)
    loaded = BranchTable.load(path)
    assert loaded == table
    assert loaded.actions.dtype == np.int8
    again = Schedule.from_actions(loaded.actions, max_age=max_age).resolve(loaded.sites)
    assert again == table


def test_table_saved_is_text_that_can_be_read(tmp_path):
    path = tmp_path / "table.json"
    Schedule.linear(5, 1, max_age=3).resolve(["x.attn", "y.attn"]).save(path)
    assert_expected_inline(
        path.read_text(),
        """\
{
 "max_age": 3,
 "actions": {
  "x.attn": "SRRRC",
  "y.attn": "CCSRR"
 }
}
""",
    )


GOOD = {"max_age": None, "actions": {"a": "SR", "b": "CC"}}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        json.dumps({"actions": {"a": "SR"}}),
        json.dumps({"max_age": None}),
        json.dumps({**GOOD, "actions": ["SR"]}),
        json.dumps({**GOOD, "actions": {}}),
        json.dumps({**GOOD, "actions": {"a": "SR", "b": "CCC"}}),
        json.dumps({**GOOD, "actions": {"a": "SX"}}),
        json.dumps({**GOOD, "actions": {"a": "RS"}}),
        json.dumps({**GOOD, "actions": {"a": 3}}),
        json.dumps({**GOOD, "actions": {"a": ""}}),
        json.dumps({**GOOD, "max_age": "old"}),
        json.dumps({**GOOD, "max_age": 0}),
        "\x00\xff",
    ],
    ids=[
        "missing",
        "empty",
        "cut",
        "list",
        "number",
        "no_age",
        "no_actions",
        "no_sites",
        "nothing",
        "lengths",
        "letter",
        "rule",
        "no_text",
        "no_steps",
        "age_of_text",
        "age_too_small",
        "noise",
    ],
)
def test_table_load_damaged_is_a_schedule_error(tmp_path, content):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(ScheduleError):
        BranchTable.load(path)


def test_table_load_good_file_of_the_damaged_ones_is_accepted(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(GOOD))
    assert BranchTable.load(path) == BranchTable([[1, 0], [2, 0]], ("a", "b"))


def test_table_load_missing_names_the_file(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(ScheduleError) as caught:
        BranchTable.load(path)
    message = str(caught.value)
    assert message.startswith(f"no branch table can be read from {path}: FileNotFoundError: ")
