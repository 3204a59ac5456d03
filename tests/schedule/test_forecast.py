"""Forecasts: weights of the methods, and tables with forecasts; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Action, BranchTable, Schedule, ScheduleError
from dqar_fx.schedule.forecast import METHODS, points_of, weigh

steps_kept = st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True).map(
    lambda steps: sorted(steps, reverse=True)
)


# ---- weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(kept=steps_kept, ahead=st.integers(1, 5), order=st.integers(0, 3))
def test_weights_of_every_method_sum_to_one(method, kept, ahead, order):
    weights = weigh(method, kept, kept[0] + ahead, order)
    assert weights.shape == (len(kept),)
    assert np.isclose(weights.sum(), 1)
    assert not weights[points_of(method, order) :].any()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(kept=steps_kept, ahead=st.integers(1, 5), slope=st.floats(-3, 3))
def test_weights_of_order_one_continue_a_line(method, kept, ahead, slope):
    weights = weigh(method, kept, kept[0] + ahead, 1)
    if len(kept) >= points_of(method, 1):
        line = slope * np.array(kept) + 7
        expected = slope * (kept[0] + ahead) + 7
        assert np.isclose(weights @ line, expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(10, 30), gap=st.integers(1, 4), ahead=st.integers(1, 4))
def test_weights_chebyshev_continue_a_parabola(first, gap, ahead):
    kept = [first, first - gap, first - 3 * gap]
    weights = weigh("chebyshev", kept, first + ahead, 2)
    curve = 0.5 * np.array(kept) ** 2.0 - 3 * np.array(kept) + 1
    step = first + ahead
    assert np.isclose(weights @ curve, 0.5 * step**2 - 3 * step + 1)


def test_weights_taylor_as_written_in_the_paper():
    """Differences of equal distance N: f + (k/N) df + (k/N)^2 / 2 ddf."""
    every, ahead = 3, 2
    weights = weigh("taylor", [12, 9, 6], 12 + ahead, 2)
    x = ahead / every
    assert np.allclose(weights, [1 + x + x * x / 2, -x - x * x, x * x / 2])


def test_weights_order_zero_is_reuse():
    for method in METHODS:
        assert weigh(method, [5, 3, 1], 9, 0).tolist() == [1, 0, 0]


def test_weights_unknown_method_rejected():
    with pytest.raises(ScheduleError, match="'cubic' is unknown; known are taylor"):
        weigh("cubic", [1], 2, 1)


# ---- tables --------------------------------------------------------------------------------


def test_forecast_keeps_as_many_steps_as_its_order_reads():
    table = Schedule.interval(9, 3, warmup=3).forecast(1).resolve(["a"])
    letters = "".join(Action(a).letter for a in table.actions[:, 0])
    assert letters == "CSSFFSFFC"
    assert table.history == 2
    assert Schedule.interval(9, 3, warmup=3).resolve(["a"]).history == 1


def test_forecast_counts_as_reuse():
    plain = Schedule.linear(20)
    sites = [f"blocks.{i}" for i in range(4)]
    assert plain.forecast(2).resolve(sites).reuse_ratio == plain.resolve(sites).reuse_ratio


@pytest.mark.parametrize("order", [0, 4])
def test_forecast_order_out_of_range_rejected(order):
    with pytest.raises(ScheduleError, match="order"):
        Schedule.interval(9, 3).forecast(order)


def test_forecast_method_unknown_rejected():
    with pytest.raises(ScheduleError, match="'cubic'"):
        Schedule.interval(9, 3).forecast(1, "cubic")


def test_forecast_without_an_order_rejected_by_the_table():
    with pytest.raises(ScheduleError, match="FORECAST without an order"):
        BranchTable(np.array([[1], [3]]), ("a",))


def test_forecast_before_any_store_rejected_by_the_table():
    with pytest.raises(ScheduleError, match="no STORE comes before"):
        BranchTable(np.array([[0], [3]]), ("a",), orders=np.ones((2, 1), np.int8))


def test_forecast_store_that_is_older_than_it_reads_is_dead():
    actions, orders = np.array([[1], [1], [1], [3]]), np.full((4, 1), 1, np.int8)
    with pytest.raises(ScheduleError, match=r"step 0, site 0 \(a\): STORE, but no REUSE"):
        BranchTable(actions, ("a",), orders=orders)
    actions[0] = 0
    assert BranchTable(actions, ("a",), orders=orders).history == 2


def test_forecast_table_saved_and_loaded_is_equal(tmp_path):
    table = Schedule.interval(9, 3).forecast(2, "chebyshev").resolve(["a", "b"])
    table.save(tmp_path / "table.json")
    assert BranchTable.load(tmp_path / "table.json") == table


def test_forecast_why_tells_the_order_and_the_source():
    table = Schedule.interval(9, 3, warmup=3).forecast(1).resolve(["a"])
    assert table.why(4, "a").endswith(
        "FORECAST of order 1 from step 2, step 2 of 2 between computed ones"
    )
