"""Forecasts and feed-forward sites: against hooks on the untouched model; counts of graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch._inductor import metrics

import dqar_fx
from dqar_fx import Action, BranchTable, Schedule, ScheduleError
from dqar_fx.schedule.forecast import METHODS, points_of, weigh
from tests.helpers.hook_oracle import ForecastOracle
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

STEPS = 8
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


# ---- against the untouched model -----------------------------------------------------------


@pytest.mark.parametrize("order", slow_but(0, 2, of=[0, 1, 2, 3]))
@pytest.mark.parametrize("name", slow_but("dit", of=MAKERS))
def test_forecast_of_all_sites_equals_hooks(name, order):
    case = MAKERS[name]()
    schedule = Schedule.interval(STEPS, 3, warmup=3)
    schedule = schedule.forecast(order) if order else schedule
    denoiser = dqar_fx.transform(case.model, schedule, sites="all")
    check_against_hooks(case, denoiser, exact=order == 0)
    assert "feed_forward" in {site.kind for site in denoiser.explain().sites}


@pytest.mark.parametrize("method", slow_but("chebyshev", of=METHODS))
def test_forecast_of_every_method_equals_hooks(method):
    case = make_dit(layers=2)
    schedule = Schedule.interval(STEPS, 2, warmup=4).forecast(2, method)
    check_against_hooks(case, dqar_fx.transform(case.model, schedule), exact=False)


def check_against_hooks(case, denoiser, *, exact, steps=STEPS, seed=0):
    oracle = None
    for step in range(steps):
        inputs = case.inputs(step, seed)
        found = denoiser(**inputs).sample
        oracle = oracle or ForecastOracle(case.model, denoiser.table)
        expected = oracle(step, **inputs)
        if exact:
            assert torch.equal(found, expected), step
        else:
            assert (found - expected).norm() <= 1e-5 * expected.norm(), step


LAYERS = 3


@pytest.fixture(scope="module")
def drawn():
    """A denoiser of all sites that keeps four steps, for tables that are drawn later."""
    case = make_dit(layers=LAYERS)
    schedule = Schedule.interval(STEPS, 2, warmup=4).forecast(3)
    return case, dqar_fx.transform(
        case.model, schedule, sites="all", example_inputs=case.inputs(0)
    )


@st.composite
def mixed_tables(draw):
    """Legal tables that mix computing, reuse and forecasts of all orders, cell by cell."""
    sites = 2 * LAYERS
    cells = st.lists(st.integers(-1, 3), min_size=sites, max_size=sites)
    orders = np.array([[-1] * sites, *[draw(cells) for _ in range(5)]])  # -1: compute
    actions = np.select([orders > 0, orders == 0], [3, 2], 0)
    for site in range(sites):
        for step in np.flatnonzero(orders[:, site] >= 0):
            computed = [s for s in range(step) if orders[s, site] < 0]
            actions[computed[-(int(orders[step, site]) + 1) :], site] = 1
    return actions, np.maximum(orders, 0).astype(np.int8)


@settings(max_examples=15, deadline=None)
@given(table=mixed_tables(), seed=st.integers(0, 9))
def test_forecast_any_mix_of_orders_equals_hooks(drawn, table, seed):
    actions, orders = table
    case, captured = drawn
    denoiser = captured.with_schedule(Schedule.from_actions(actions, orders=orders))
    check_against_hooks(case, denoiser, exact=False, steps=len(actions), seed=seed)


def test_forecast_starts_over_with_each_trajectory():
    case = make_dit(layers=2)
    schedule = Schedule.interval(STEPS, 3, warmup=3).forecast(2)
    denoiser = dqar_fx.transform(case.model, schedule, sites="all")
    for seed in range(2):  # the places of the history go on from where they were
        check_against_hooks(case, denoiser, exact=False, seed=seed)
    for step in range(5):
        denoiser(**case.inputs(step, 2))
    check_against_hooks(case, denoiser, exact=False, seed=3)


@pytest.mark.parametrize("cache", slow_but("int8", of=["fp16", "int8", "fp8"]))
def test_forecast_from_narrow_formats_stays_near(cache):
    case = make_dit(layers=2)
    schedule = Schedule.interval(STEPS, 3, warmup=3).forecast(1)
    same = dqar_fx.transform(case.model, schedule)
    narrow = dqar_fx.transform(case.model, schedule, cache=cache)
    for step in range(STEPS):
        expected = same(**case.inputs(step)).sample
        found = narrow(**case.inputs(step)).sample
        assert (found - expected).norm() < 0.01 * expected.norm()
    held = sum(stream.slots.nbytes for stream in narrow.program.streams.values())
    assert held == narrow.cache_bytes


# ---- compiled ------------------------------------------------------------------------------


def test_forecast_compiles_one_graph_more_whatever_the_order_interval_and_steps():
    torch._dynamo.reset()
    counters.clear()
    case = make_dit(layers=4)
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.interval(12, 3, warmup=4).forecast(2),
        sites="all",
        compile={"backend": "aot_eager"},
    )
    run(denoiser, case, 12)
    (region,) = {c.region for c in denoiser.program.plan.calls if c.columns}
    variants = denoiser.program.lowering.count_variants(denoiser.program.plan.regions[region])
    assert variants == 3  # computing, storing, forecasting: attention and feed-forward alike
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == len(denoiser.program.variants)
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        run(denoiser, case, 12, seed=1)
        other = denoiser.with_schedule(
            Schedule.interval(20, 4, warmup=5).forecast(2, "chebyshev")
        )
        run(other, case, 20)
    assert counters["stats"]["unique_graphs"] == graphs


def run(denoiser, case, steps, seed=0):
    for step in range(steps):
        denoiser(**case.inputs(step, seed))


def test_forecast_of_another_history_is_captured_anew():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3, warmup=3))
    denoiser(**case.inputs(0))
    other = denoiser.with_schedule(Schedule.interval(STEPS, 3, warmup=3).forecast(1))
    check_against_hooks(case, other, exact=False)


@pytest.mark.slow
def test_forecast_of_a_whole_block_is_one_kernel():
    """Attention and feed-forward forecast from quantised slots, and added: one loop."""
    torch._dynamo.reset()
    case = make_dit(layers=2)
    schedule = Schedule.interval(STEPS, 3, warmup=2).forecast(2)
    denoiser = dqar_fx.transform(
        case.model, schedule, sites="all", cache="int8", compile="regional"
    )
    kernels = []
    for step in range(4):
        metrics.reset()
        denoiser(**case.inputs(step))
        kernels.append(metrics.generated_kernel_count)
    assert kernels[0] > 10
    assert kernels[1:] == [0, 1, 0]


def test_forecast_reads_nothing_of_an_earlier_trajectory():
    """Weights of zero do not hide NaN: places that are not used yet must hold numbers."""
    case = make_dit()
    schedule = Schedule.from_actions("CCFCCF", orders=[[0], [0], [1], [0], [0], [2]])
    denoiser = dqar_fx.transform(case.model, schedule)
    broken = {
        k: v * torch.nan if k == "hidden_states" else v for k, v in case.inputs(0).items()
    }
    for step in range(6):
        denoiser(**(broken | {"timestep": case.inputs(step)["timestep"]}))
    for step in range(6):
        assert denoiser(**case.inputs(step)).sample.isfinite().all()
