"""Forecasts and feed-forward sites: against hooks on the untouched model; counts of graphs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch._inductor import metrics

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.schedule.forecast import METHODS
from tests.helpers.hook_oracle import ForecastOracle
from tests.helpers.lowered_variants import count_variants
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

STEPS = 8

# ---- against the untouched model -----------------------------------------------------------


@pytest.fixture(scope="module")
def captured():
    """Models, and denoisers of all sites that keep four steps, for later schedules."""

    @cache
    def make(name):
        case = MAKERS[name]()
        schedule = Schedule.interval(STEPS, 3, warmup=4).forecast(3)
        inputs = case.inputs(0)
        return case, dqar_fx.transform(
            case.model, schedule, sites="all", example_inputs=inputs
        )

    return make


@pytest.mark.parametrize("name", slow_but("dit", of=MAKERS))
@pytest.mark.parametrize("order", slow_but(0, 2, of=[0, 1, 2, 3]))
def test_forecast_of_all_sites_equals_hooks(name, order, captured):
    case, denoiser = captured(name)
    schedule = Schedule.interval(STEPS, 3, warmup=3)
    denoiser = denoiser.with_schedule(schedule.forecast(order) if order else schedule)
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
    variants = count_variants(denoiser.program.lowering, denoiser.program.plan.regions[region])
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
