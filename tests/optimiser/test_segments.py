"""The model of errors, and the search that is exact under it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Guidance, Schedule, ScheduleError
from dqar_fx.optimiser.candidate import Candidate, group_sites, schedule_candidate
from dqar_fx.optimiser.measurements import Measurements, fit_sensitivity, spread_gain
from dqar_fx.optimiser.segments import SegmentErrors
from dqar_fx.schedule.forecast import weigh
from tests.helpers.error_models import made_up

STEPS = 7


def brute_force(measured, segments, group, price):
    """The least cost over all sets of computed steps that are legal."""
    best = np.inf
    for size in range(STEPS):
        for more in combinations(range(1, STEPS), size):
            computed = (0, *more)
            if not segments.is_legal(computed):
                continue
            error = 0.0
            for step in set(range(STEPS)) - set(computed):
                kept = [s for s in reversed(computed) if s < step][:2]
                tried = [0, 1] if len(kept) == 2 else [0]
                errors = [measured.errors(step, kept, o, "taylor") for o in tried]
                error += np.min(errors, axis=0)[list(group)].sum()
            ms = measured.saved_ms[list(group)].sum() * size
            best = min(best, price * error + ms)
    return best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), age=st.integers(1, 4), price=st.floats(0.1, 50))
def test_cheapest_is_the_best_of_all_sets(seed, age, price):
    measured, _ = made_up(seed=seed)
    segments = SegmentErrors(measured, age, (0, 1), "taylor")
    group = (0, 2)
    steps = segments.cheapest(group, price)
    assert segments.is_legal(steps)
    cost = price * segments.error(group, steps)
    cost += measured.saved_ms[list(group)].sum() * (len(steps) - 1)
    assert np.isclose(cost, brute_force(measured, segments, group, price))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    step=st.integers(3, 6),
    order=st.integers(0, 2),
    method=st.sampled_from(["taylor", "chebyshev", "least_squares"]),
)
def test_site_errors_from_inner_products_are_those_of_the_values(seed, step, order, method):
    measured, paths = made_up(seed=seed)
    kept = [step - 1, step - 2, step - 3]
    found = measured.site_errors(step, kept, order, method)
    weights = weigh(method, kept, step, order)
    forecast = np.einsum("k,ski->si", weights, paths[:, kept])
    right = paths[:, step]
    expected = np.linalg.norm(forecast - right, axis=1) / np.linalg.norm(right, axis=1)
    assert np.allclose(found, expected)


def test_segments_age_never_beyond_the_limit():
    measured, _ = made_up()
    for age in (1, 2, 3):
        steps = SegmentErrors(measured, age, (0,), "taylor").cheapest((0, 1), price=1e-9)
        assert np.diff([*steps, STEPS]).max() == age + 1


def test_segments_a_high_price_computes_all_and_a_low_one_as_little_as_allowed():
    measured, _ = made_up()
    segments = SegmentErrors(measured, STEPS, (0, 1), "taylor")
    assert segments.cheapest((0,), 1e9) == tuple(range(STEPS))
    assert segments.cheapest((0,), 1e-9) == (0,)


@pytest.mark.parametrize(
    ("computed", "is_legal"),
    [((0, 3, 6), True), ((1, 3, 6), False), ((0, 5), False), ((0, 3, 3), False)],
)
def test_segments_tell_legal_steps(computed, is_legal):
    measured, _ = made_up()
    assert SegmentErrors(measured, 2, (0,), "taylor").is_legal(computed) == is_legal


def test_schedule_candidate_takes_the_best_order_and_says_why():
    measured, _ = made_up()
    segments = SegmentErrors(measured, 3, (0, 1, 2), "taylor")
    candidate = Candidate(group_sites(measured)["by kind"], ((0, 1, 4), (0, 3, 4)))
    plan = schedule_candidate(candidate, measured, segments, "all")
    table = plan.schedule.resolve(measured.sites)
    assert plan.schedule.sites == "all"
    text = "".join("C" if a < 2 else "R" for a in table.actions[:, 1])
    assert text == "CRRCCRR"
    kept = [4, 1, 0]
    by_order = [measured.errors(5, kept, o, "taylor")[[0, 2]].sum() for o in (0, 1, 2)]
    assert table.orders[5, 0] == np.argmin(by_order)
    assert "predicted error" in table.why(5, 0)
    assert "saves" in table.why(5, 0)
    assert "else its predicted error would be" in table.why(4, 0)
    assert candidate.ms(measured) == pytest.approx(
        70 - 4 * measured.saved_ms[[0, 2]].sum() - 4 * measured.saved_ms[[1, 3]].sum()
    )


def test_candidate_costs_what_its_steps_cost_with_and_without_the_unconditional_stream():
    measured, _ = made_up(
        num_steps=4,
        guided_ms=np.array([12.0, 7.0]),
        guided_saved_ms=np.array([[1.0, 2, 3, 4], [0.5, 1, 1.5, 2]]),
    )
    guidance = Guidance(output=Schedule.from_actions("CRRC"), batched="conditional_first")
    candidate = Candidate(((0, 1, 2, 3),), ((0, 2),), guidance)
    assert candidate.ms(measured) == pytest.approx(12 + (7 - 5) + 7 + (12 - 10))
    plain = Candidate(((0, 1, 2, 3),), ((0, 2),))
    assert plain.ms(measured) == pytest.approx(40 - 2 * measured.saved_ms.sum())


def test_group_sites_covers_every_site_once():
    measured, _ = made_up(num_sites=6)
    for groups in group_sites(measured).values():
        assert sorted(site for group in groups for site in group) == list(range(6))


def test_fit_sensitivity_finds_factors_of_steps_and_sites():
    rng = np.random.default_rng(1)
    by_step, by_site = rng.uniform(0.5, 2, 20), rng.uniform(0.1, 3, 5)
    tried = [(t, s, 0.01 * by_step[t] * by_site[s], 0.01) for t in range(20) for s in range(5)]
    found = fit_sensitivity(tried, 20, 5)
    assert np.abs(np.log(found / np.outer(by_step, by_site))).max() < 0.15


def test_spread_gain_is_linear_between_logarithms():
    gain = spread_gain({1: 1.0, 3: 4.0}, 5)
    assert np.allclose(gain, [1, 1, 2, 4, 4])


def test_measured_saves_loads_and_refuses_what_is_damaged(tmp_path):
    measured, _ = made_up()
    measured.save(tmp_path)
    again = Measurements.load(tmp_path)
    assert (again.sites, again.kinds, again.site_bytes) == (
        measured.sites,
        measured.kinds,
        measured.site_bytes,
    )
    for name in ("gram", "sensitivity", "gain", "saved_ms", "guided_saved_ms"):
        assert np.array_equal(getattr(again, name), getattr(measured, name))
    (tmp_path / "measured.json").write_text("{}")
    with pytest.raises(ScheduleError, match="no measured can be read"):
        Measurements.load(tmp_path)
