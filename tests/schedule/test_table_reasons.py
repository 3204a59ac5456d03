"""The reasons of a branch table: why a cell is what it is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from dqar_fx import (
    Action,
    BranchTable,
    Schedule,
    ScheduleError,
    entropy_gate,
    policy_gate,
    snr_gate,
)
from tests.helpers.random_calibrations import Levels, random_calibration, random_policy
from tests.helpers.table_texts import table_of, valid_columns

FEW = settings(max_examples=50, deadline=None)


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


def test_why_compute_all_tells_that_everything_is_computed():
    assert said(Schedule.compute_all(3), (0, 0), (1, 0), (2, 3)) == [
        "COMPUTE, nothing is kept yet",
        "COMPUTE, the schedule computes everything",
        "COMPUTE, the schedule computes everything",
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
