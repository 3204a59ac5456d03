"""Damped forecasts: noise by weights, what damping does to them, and which tables have any."""

from __future__ import annotations

from itertools import pairwise
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import BranchTable, Schedule, ScheduleError
from dqar_fx.passes import FORMATS
from dqar_fx.schedule.forecast import METHODS, amplify, damping_for, points_of, weigh

DRAWS = 40_000
SITES = ("a", "b")
PLAIN = Schedule.interval(20, 3).forecast(2)
BY_CACHE = Schedule.interval(20, 3).forecast(2, damping="cache")

steps_kept = st.lists(st.integers(0, 40), min_size=2, max_size=5, unique=True).map(
    lambda steps: sorted(steps, reverse=True)
)
any_forecast = given(
    method=st.sampled_from(sorted(METHODS)),
    kept=steps_kept,
    ahead=st.integers(1, 5),
    order=st.integers(0, 3),
)
QUICK = settings(max_examples=80, deadline=None)


# ---- noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_noise_of_a_forecast_has_the_deviation_that_its_weights_tell(method, order):
    weights = weigh(method, [24, 20, 16, 12, 8], 27, order)
    noise = np.random.default_rng(order).normal(size=(DRAWS, len(weights)))
    found = (noise @ weights).var()
    bound = 5 * np.sqrt(2 / DRAWS)  # five deviations of a variance of normal numbers
    assert found == pytest.approx(amplify(weights) ** 2, rel=bound)


def test_noise_grows_with_order_and_age():
    kept = [12, 9, 6, 3]
    factors = [
        [amplify(weigh("taylor", kept, 12 + age, order)) for age in range(1, 6)]
        for order in range(4)
    ]
    assert factors[0] == [1.0] * 5
    for lower, higher in pairwise(factors):
        assert all(a < b for a, b in zip(lower, higher, strict=True))
        assert higher == sorted(higher)


# ---- weights -------------------------------------------------------------------------------


@QUICK
@any_forecast
def test_damping_of_zero_leaves_every_bit(method, kept, ahead, order):
    step = kept[0] + ahead
    plain, damped = (weigh(method, kept, step, order, *d) for d in ((), (0.0,)))
    assert np.array_equal(plain, damped)


@QUICK
@any_forecast
def test_damping_without_end_gives_the_mean_of_what_is_read(method, kept, ahead, order):
    weights = weigh(method, kept, kept[0] + ahead, order, 1e9)
    read = min(len(kept), points_of(method, order))
    assert np.allclose(weights, [1 / read] * read + [0] * (len(kept) - read), atol=1e-9)


@QUICK
@any_forecast
def test_damping_of_almost_nothing_changes_almost_nothing(method, kept, ahead, order):
    step = kept[0] + ahead
    plain = weigh(method, kept, step, order)
    assert np.allclose(weigh(method, kept, step, order, 1e-8), plain, atol=1e-6)


@QUICK
@any_forecast
def test_damping_amplifies_less_the_more_there_is_of_it(method, kept, ahead, order):
    found = [
        weigh(method, kept, kept[0] + ahead, order, damping)
        for damping in (0.0, 0.01, 0.1, 1.0, 10.0, 1000.0)
    ]
    assert np.allclose([weights.sum() for weights in found], 1)
    factors = [amplify(weights) for weights in found]
    assert all(a >= b - 1e-9 for a, b in pairwise(factors))


@QUICK
@given(kept=steps_kept, ahead=st.integers(1, 5), damping=st.floats(0.05, 5))
def test_damping_solves_the_stated_problem(kept, ahead, damping):
    """Against its normal equations, with the sum of weights as a constraint."""
    order, step, points = min(3, len(kept) - 1), kept[0] + ahead, min(4, len(kept))
    read = np.array(kept[:points], float)
    plain = weigh("taylor", kept[:points], step, order)
    distance = (read[0] - read[-1]) / (points - 1)
    places = (read - read[0]) / distance
    curve = np.array([places**k / factorial(k) for k in range(1, order + 1)])
    system = np.ones((points + 1, points + 1))
    system[:points, :points] = curve.T @ curve + (damping / distance) ** 2 * np.eye(points)
    system[-1, -1] = 0
    right = np.append(curve.T @ curve @ plain, 1)
    expected = np.linalg.solve(system, right)[:points]
    found = weigh("taylor", kept, step, order, damping)[:points]
    assert np.allclose(found, expected, atol=1e-6 * max(1, np.abs(plain).max()))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("damping", [0.2, 1.0, 3.0])
def test_damped_forecasts_of_noisy_curves_are_nearer(order, damping):
    """Polynomials whose derivatives are alike per distance of kept steps, as is supposed."""
    rng, kept, step = np.random.default_rng(7), np.array([9, 6, 3, 0][: order + 1]), 11
    places = [(np.append(kept, step) - 9) / 3] * (order + 1)
    powers = np.stack([x**k / factorial(k) for k, x in enumerate(places)])
    curves = rng.normal(size=(DRAWS, order + 1)) @ powers
    noisy = curves[:, :-1] + damping / 3 * rng.normal(size=(DRAWS, order + 1))

    def error(d):
        weights = weigh("chebyshev", kept.tolist(), step, order, d)
        return ((noisy @ weights - curves[:, -1]) ** 2).mean()

    tried = {d: error(d) for d in (0.0, damping / 3, damping, 3 * damping)}
    assert min(tried, key=tried.get) == damping


# ---- tables --------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", FORMATS)
def test_table_left_to_its_format_is_damped_has_eight_bits(cache):
    rounding = FORMATS[cache].rounding
    table = BY_CACHE.resolve(SITES, rounding=rounding)
    has_eight = cache in ("int8", "int8-per-channel", "fp8")
    assert table.damping == (pytest.approx(rounding * 20 / 3) if has_eight else 0.0)
    assert (table == PLAIN.resolve(SITES)) is not has_eight


def test_table_is_damped_by_more_where_steps_are_smaller():
    assert damping_for(0.01, 50) == pytest.approx(2.5 * damping_for(0.01, 20))


def test_table_has_the_damping_that_the_schedule_says():
    rounding = FORMATS["int8"].rounding
    assert PLAIN.resolve(SITES, rounding=rounding) == PLAIN.resolve(SITES)
    for damping in (0.0, 0.3):
        schedule = Schedule.interval(20, 3).forecast(2, damping=damping)
        assert schedule.resolve(SITES, rounding=rounding).damping == damping
        assert Schedule.interval(every=3).forecast(2, damping=damping).for_run(9).damping == (
            damping
        )
    written = Schedule.from_actions("SSFF", orders=1, damping=0.2)
    assert written.resolve(SITES).damping == 0.2


def test_table_that_is_damped_is_told_saved_and_loaded(tmp_path):
    table = Schedule.interval(9, 3).forecast(2, damping=0.25).resolve(SITES)
    table.save(tmp_path / "table.json")
    loaded = BranchTable.load(tmp_path / "table.json")
    assert loaded == table
    assert loaded != Schedule.interval(9, 3).forecast(2, damping=0.0).resolve(SITES)
    assert "F forecast (taylor, damped by 0.25, order 2)" in str(loaded)
    again = Schedule.from_table(loaded)
    assert again.resolve(SITES, rounding=0.1).damping == 0.25


@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf"), "much", True])
def test_damping_that_is_none_is_refused(damping):
    with pytest.raises(ScheduleError, match=r"damping=.*expected the noise of what is kept"):
        Schedule.interval(9, 3).forecast(1, damping=damping)
    with pytest.raises(ScheduleError, match="damping="):
        BranchTable(np.array([[1], [2]], np.int8), ("a",), damping=damping)


def test_damped_and_other_forecasts_are_not_combined():
    damped, plain = (Schedule.interval(9, 3).forecast(1, damping=d) for d in (0.1, 0.0))
    with pytest.raises(ScheduleError, match="combine schedules first"):
        damped & plain
