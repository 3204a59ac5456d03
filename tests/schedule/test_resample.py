"""Written-out schedules at another number of steps: each row does what its nearest does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Action, BranchTable, Guidance, Schedule, ScheduleError
from dqar_fx.schedule.run import RunShape, find_nearest_rows
from tests.helpers.random_schedules import AGES, paths
from tests.helpers.table_texts import texts_of

FEW = settings(max_examples=100, deadline=None)
STEPS = st.integers(1, 24)


@st.composite
def written(draw):
    """Letters of a valid written-out schedule, its orders, and how it may be resampled."""
    num_steps, num_sites = draw(STEPS), draw(st.integers(1, 4))
    row = st.lists(st.sampled_from("CRF"), min_size=num_steps - 1, max_size=num_steps - 1)
    texts = ["C" + "".join(draw(row)) for _ in range(num_sites)]
    orders = [[draw(st.integers(1, 3)) for _ in range(num_sites)] for _ in range(num_steps)]
    method = draw(st.sampled_from(["taylor", "least_squares"]))
    return Schedule.from_actions(texts, orders=orders, method=method, resample=True)


def ratios(draw, num_steps):
    steps = st.lists(st.floats(0.01, 3), min_size=num_steps, max_size=num_steps)
    return np.exp(np.cumsum(draw(steps)) - 5).tolist()


# ---- the nearest row ---------------------------------------------------------------------


def nearest_by_hand(place, places, positions, position):
    least = min(abs(place - other) for other in places)
    near = [i for i, other in enumerate(places) if abs(place - other) <= least + 1e-9]
    apart = min(abs(position - positions[i]) for i in near)
    return next(i for i in near if abs(position - positions[i]) <= apart + 1e-9)


@FEW
@given(st.data(), STEPS, STEPS)
def test_nearest_rows_are_those_of_the_least_distance(data, num_rows, num_known):
    noise, known = ratios(data.draw, num_rows), ratios(data.draw, num_known)
    position, positions = np.linspace(0, 1, num_rows), np.linspace(0, 1, num_known)
    for has_noise in (True, False):
        run = RunShape(num_rows, noise=tuple(noise) if has_noise else ())
        found = find_nearest_rows(run, num_known, tuple(known))
        level, levels = (np.log(noise), np.log(known)) if has_noise else (position, positions)
        assert found.tolist() == [
            nearest_by_hand(level[row], levels, positions, position[row])
            for row in range(num_rows)
        ]


def test_nearest_rows_of_equal_noise_are_told_by_their_place():
    """Heun's second call has the noise of the next step's first one."""
    seven = (0.0, 1.0, 1.0, 3.0, 3.0, 9.0, 9.0)
    assert find_nearest_rows(RunShape(7, noise=seven), 7, seven).tolist() == list(range(7))


def test_nearest_rows_of_infinite_ratios_are_each_other():
    noise = (0.0, 1.0, np.inf)
    found = find_nearest_rows(RunShape(5, noise=(0.0, 0.1, 1e9, 1e30, np.inf)), 3, noise)
    assert found.tolist() == [0, 1, 1, 2, 2]


# ---- tables ------------------------------------------------------------------------------


@FEW
@given(written())
def test_resample_to_the_same_number_is_the_identity(schedule):
    assert schedule.for_run(schedule.num_steps) is schedule
    noise = np.geomspace(0.1, 9, schedule.num_steps)
    table = schedule.for_run(schedule.num_steps, noise=noise).resolve(
        paths(len(schedule.rule.letters[0]))
    )
    assert table == schedule.resolve(table.sites)


@FEW
@given(st.data(), STEPS, AGES, st.booleans())
def test_resample_gives_valid_tables_of_the_nearest_rows(data, num_rows, max_age, has_noise):
    schedule = data.draw(written())
    num_steps, sites = schedule.num_steps, paths(len(schedule.rule.letters[0]))
    noise = None
    if has_noise:
        known = ratios(data.draw, num_steps)
        schedule = Schedule.from_actions(
            ["".join(column) for column in zip(*schedule.rule.letters, strict=True)],
            orders=schedule.rule.orders,
            method=schedule.method,
            resample=True,
            noise=known,
        )
        noise = ratios(data.draw, num_rows)
    schedule = Schedule(num_steps, schedule.rule, max_age, 0, schedule.method, resample=True)
    if num_rows == num_steps:
        return
    fixed = schedule.for_run(num_rows, noise=noise)
    table = fixed.resolve(sites)  # verified: no dead store, nothing too old, orders in range
    assert table.num_steps == num_rows
    assert table.history <= fixed.max_history <= schedule.max_history
    assert table.noise == (() if noise is None else tuple(noise))
    nearest = find_nearest_rows(
        RunShape(num_rows, noise=table.noise), num_steps, schedule.rule.noise
    )
    letters, orders = np.array(schedule.rule.letters), np.array(schedule.rule.orders)
    oldest = fixed.rule.oldest if max_age is None else min(fixed.rule.oldest, max_age)
    for row in range(num_rows):
        for site in range(len(sites)):
            wanted, age = letters[nearest[row], site], table.ages[row, site]
            read = {"R": Action.REUSE, "F": Action.FORECAST}.get(wanted)
            if read is None or row == 0 or age > oldest:
                assert table.actions[row, site] in (Action.COMPUTE, Action.STORE)
                continue
            assert table.actions[row, site] == read
            if read == Action.FORECAST:
                assert table.orders[row, site] == orders[nearest[row], site]


def test_resample_golden():
    schedule = Schedule.from_actions("CRRCRR", resample=True)
    for num_rows, text in ((12, "CSRRRRCSRRRR"), (9, "SRRRCSRRR"), (4, "SRSR"), (3, "SRC")):
        assert texts_of(schedule.for_run(num_rows).resolve("a")) == [text]


def test_resample_golden_by_noise():
    """More steps at high noise than the written ones have: more of them do what these do."""
    schedule = Schedule.from_actions("CCRR", resample=True, noise=[0.01, 0.1, 1.0, 10.0])
    noise = [0.01, 0.02, 0.05, 0.1, 0.2, 2.0]
    assert texts_of(schedule.for_run(6, noise=noise).resolve("a")) == ["CCCCSR"]
    assert texts_of(schedule.for_run(6).resolve("a")) == ["CCSRRR"]


def test_resample_reads_nothing_older_than_its_share():
    """Nearest rows of a short period may all read: the age of what is read is limited."""
    schedule = Schedule.from_actions("CR" * 10, resample=True)
    table = schedule.for_run(10).resolve("a")
    assert table.ages[table.is_read].max() == 1
    assert texts_of(table) == ["CCCCSRSRSR"]
    assert table.why(6, 0).endswith(
        "row 13 of 20: written out: R; what is kept is 2 steps old, beyond 1"
    )
    assert texts_of(schedule.for_run(40).resolve("a")) == ["CSRR" * 10]


def test_resample_covered_sites_follow_what_is_around_them():
    schedule = Schedule.from_actions(["SRRCCC", "C..SRR"], resample=True)
    around = ((), (0,))
    assert texts_of(schedule.resolve("ab", around)) == ["SRRCCC", "C..SRR"]
    table = schedule.for_run(11).resolve("ab", around)
    inner, outer = table.actions[:, 1] == Action.COVERED, table.is_read[:, 0]
    assert (inner == outer).all()
    assert inner.sum() == 4
    aged = Schedule(6, schedule.rule, 1, resample=True).for_run(11).resolve("ab", around)
    inner, outer = aged.actions[:, 1] == Action.COVERED, aged.is_read[:, 0]
    assert (inner == outer).all()
    assert inner.any()


def test_resample_says_which_row_a_cell_follows():
    table = Schedule.from_actions("CRRC", resample=True).for_run(7).resolve("a")
    assert table.why(0, 0).endswith("COMPUTE, nothing is kept yet")
    assert table.why(2, 0).endswith("row 1 of 4: written out: R")
    assert table.why(6, 0).endswith("row 3 of 4: written out: C")


def test_resample_in_guidance_keeps_its_forecasts():
    own = Schedule.from_actions("CCFFCF", orders=1, resample=True)
    guidance = Guidance(own, Schedule.from_actions("CCCRCC", resample=True)).for_run(11)
    conditional = Schedule.compute_all(11)
    table = guidance.resolve(conditional, ("a", "b"), ())
    skipped = guidance.output_table().is_read[:, 0]
    assert skipped.sum() == 2
    assert (table.actions[skipped] == Action.COMPUTE).all()
    assert (table.orders[table.actions == Action.FORECAST] == 1).all()
    assert (table.actions == Action.FORECAST).any()


@pytest.mark.parametrize("num_rows", [1, 5])
def test_resample_other_number_of_sites_named(num_rows):
    schedule = Schedule.from_actions(["CRR", "CCR"], resample=True).for_run(num_rows)
    with pytest.raises(ScheduleError, match="has 2 sites but the model has 3"):
        schedule.resolve("abc")


# ---- what cannot be ----------------------------------------------------------------------


def test_without_resample_another_number_is_an_error():
    schedule = Schedule.from_actions("CRRC", noise=[0.1, 1, 2, 3])
    with pytest.raises(ScheduleError) as caught:
        schedule.for_run(5)
    assert "for 4 steps, but the run has 5" in str(caught.value)
    assert "resample=True" in str(caught.value)


def test_weights_cannot_be_resampled():
    weights = np.zeros((3, 1, 2))
    weights[2, 0] = 2, -1
    given = {"orders": 1, "weights": weights}
    with pytest.raises(ScheduleError, match="cannot be resampled"):
        Schedule.from_actions("SSF", resample=True, **given)
    with pytest.raises(
        ScheduleError, match="weights of forecasts are written out for 3 steps"
    ):
        Schedule.from_actions("SSF", **given).for_run(4)


def test_noise_of_another_number_of_steps_is_an_error():
    with pytest.raises(ScheduleError, match="noise of a run need one value per row, 4"):
        Schedule.from_actions("CRRC", noise=[1, 2])
    with pytest.raises(ScheduleError, match="as many noise levels"):
        BranchTable(np.array([[1], [2]]), ("a",), noise=(1.0,))


# ---- files -------------------------------------------------------------------------------


@FEW
@given(written(), st.booleans(), st.booleans())
def test_saved_table_keeps_for_what_it_is_good(
    tmp_path_factory, schedule, resample, has_noise
):
    noise = [0.0, *np.geomspace(0.01, 9, 40)[: schedule.num_steps - 1]] if has_noise else None
    if has_noise:
        noise[-1] = np.inf
    num_steps, sites = schedule.num_steps, paths(len(schedule.rule.letters[0]))
    table = replace(schedule.for_run(num_steps, noise=noise), resample=resample).resolve(sites)
    path = tmp_path_factory.mktemp("table") / "table.json"
    table.save(path)
    loaded = BranchTable.load(path)
    assert loaded == table
    assert (loaded.noise, loaded.resample) == (table.noise, resample)
    again = Schedule.from_table(loaded)
    assert again.sites == tuple(sites)
    assert again.resolve(sites) == table
    other, levels = num_steps + 3, np.geomspace(0.02, 7, num_steps + 3)
    if not resample:
        with pytest.raises(ScheduleError):
            again.for_run(other)
        return
    before = Schedule.from_table(table).for_run(other, noise=levels).resolve(sites)
    assert again.for_run(other, noise=levels).resolve(sites) == before


def test_saved_table_of_before_is_good_for_its_own_number(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"max_age": None, "actions": {"a": "SR"}}))
    loaded = BranchTable.load(path)
    assert not loaded.resample
    assert loaded.noise == ()


@pytest.mark.parametrize(
    "facts", [{"resample": 1}, {"noise": [1.0]}, {"noise": ["x", 1]}, {"noise": [1.0, -2.0]}]
)
def test_saved_table_that_is_damaged_is_an_error(tmp_path, facts):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"max_age": None, "actions": {"a": "SR"}, **facts}))
    with pytest.raises(ScheduleError):
        BranchTable.load(path)
