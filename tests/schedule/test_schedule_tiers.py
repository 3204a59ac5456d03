"""Schedule tiers: tables of any length, their cost, names, and runs too short for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqar_fx import Action, Schedule, ScheduleError
from dqar_fx.schedule.schedule import as_schedule
from dqar_fx.schedule.schedule_tiers import TIERS
from tests.helpers.random_schedules import FEW, SITES, paths
from tests.helpers.table_texts import texts_of

NAMES = ("quality", "balanced", "fast", "fastest")
LENGTHS = st.one_of(st.integers(1, 60), st.just(1000))


def text_of(name, num_steps):
    """The actions of a tier's one decision for all sites."""
    (text,) = texts_of(Schedule.tier(name, num_steps).resolve(paths(1)))
    return text


def count_computed(name, num_steps):
    return sum(letter in "CS" for letter in text_of(name, num_steps))


def distances(name, num_steps):
    """Distances of computed steps, from the first one on."""
    return np.diff([k for k, letter in enumerate(text_of(name, num_steps)) if letter in "CS"])


def test_tiers_are_named_from_the_best_pictures_to_the_fastest():
    assert tuple(TIERS) == NAMES


@FEW
@given(st.sampled_from(NAMES), LENGTHS, SITES)
def test_tier_has_a_table_of_any_length_with_one_decision_for_all_sites(name, length, sites):
    table = Schedule.tier(name).for_run(length).resolve(paths(sites))
    assert table.actions.shape == (length, sites)
    assert (table.actions == table.actions[:, :1]).all()
    assert set(np.unique(table.orders)) <= {0, 2}
    assert not (table.actions == Action.REUSE).any()


@FEW
@given(st.sampled_from(NAMES), LENGTHS)
def test_tier_computes_the_first_and_the_last_two_steps(name, length):
    text, first = text_of(name, length), 2 if TIERS[name].careful else 1
    assert set(text[:first] + text[-2:]) <= set("CS")


@FEW
@given(st.sampled_from(NAMES), st.one_of(st.integers(2, 300), st.just(1000)))
def test_computed_steps_are_as_far_apart_as_a_tier_says_and_drift_apart_with_care(
    name, length
):
    found, rule = distances(name, length), TIERS[name]
    assert found.max() <= rule.every(length)
    if rule.careful:
        assert (np.abs(np.diff(found)) <= 1).all()


@pytest.mark.parametrize("length", [*range(1, 301), 1000])
def test_each_tier_computes_no_more_than_the_one_before(length):
    counts = [count_computed(name, length) for name in NAMES]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_run_too_short_for_a_tier_computes_everything_and_says_so(name):
    fewest = TIERS[name].fewest
    for length in range(1, fewest):
        short = Schedule.tier(name).for_run(length)
        assert set(text_of(name, length)) == {"C"}
        assert all(part in short.notice for part in (name, f"{length} steps", str(fewest)))
        if length > 1:
            assert short.resolve(paths(1)).why(1, 0).endswith(short.notice)
    assert Schedule.tier(name).notice == Schedule.tier(name, fewest).notice == ""
    assert "F" in text_of(name, fewest)


def test_combined_schedules_have_the_notices_of_their_tiers():
    pair = Schedule.tier("fast", 3) & Schedule.tier("fastest", 3)
    assert all(f"tier {name} " in pair.notice for name in ("fast", "fastest"))
    assert (pair | pair).notice == pair.notice
    assert (Schedule.compute_all(3) | Schedule.compute_all(3)).notice == ""


def test_reason_of_a_cell_names_the_tier_and_its_numbers():
    table = Schedule.tier("balanced", 20).resolve(paths(2))
    computed = int(table.is_read.shape[0] - table.is_read[:, 0].sum())
    assert f"the schedule tier balanced computes {computed} of 20 steps" in table.why(4, 1)


@pytest.mark.parametrize("name", NAMES)
def test_name_stands_for_the_schedule(name):
    assert as_schedule(name) == Schedule.tier(name)
    assert as_schedule(Schedule.tier(name, 9)) == Schedule.tier(name, 9)
    assert Schedule.tier(name).for_run(9).num_steps == 9


@pytest.mark.parametrize("given", ["swift", "", "Fast", 3, None, ["fast"]])
def test_what_is_no_schedule_is_an_error_that_lists_the_tiers(given):
    with pytest.raises(ScheduleError, match=", ".join(NAMES)):
        as_schedule(given)
