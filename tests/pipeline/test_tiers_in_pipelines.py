"""Schedule tiers in a stock pipeline: against hooks, switched, in short runs, and misnamed."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch._dynamo.utils import counters

import dqar_fx
from benchmarks.stock import dit
from benchmarks.stock.tiny import seeded_draws
from dqar_fx import Guidance, Schedule, ScheduleError, prior_art
from dqar_fx.schedule.schedule_tiers import TIERS
from tests.helpers.hook_oracle import ForecastOracle
from tests.helpers.models import make_dit

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
STEPS = 16


def ask(pipe, steps=STEPS):
    with seeded_draws(0):
        return pipe([3, 7], num_inference_steps=steps, output_type="pt").images


def ask_with_hooks(pipe, table):
    """The pictures of the untouched model, whose modules do by hooks what a table says."""
    model = pipe.transformer
    oracle, steps = ForecastOracle(copy.deepcopy(model), table), iter(range(STEPS))

    def forward(hidden_states, **given):
        sample = oracle(
            next(steps), hidden_states=hidden_states, **{**given, "return_dict": True}
        )
        return type("Output", (), {"sample": sample})

    model.forward = forward
    try:
        return ask(pipe)
    finally:
        del model.forward


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("name", TIERS)
def test_tier_equals_hooks_with_its_table(name, scheduler):
    pipe = dit.make(scheduler)
    with dqar_fx.enabled(pipe, name):
        found, table = ask(pipe), pipe.transformer.table
    assert len(table.sites) == 6  # attention and feed-forward of three blocks
    assert table == Schedule.tier(name, STEPS).resolve(table.sites)
    assert table.reuse_ratio > 0
    torch.testing.assert_close(found, ask_with_hooks(pipe, table), rtol=1e-4, atol=1e-4)


def test_enable_without_a_schedule_takes_the_balanced_tier():
    pipe = dit.make(DDIMScheduler)
    with dqar_fx.enabled(pipe):
        ask(pipe)
        table = pipe.transformer.table
    assert dqar_fx.enable(pipe) is pipe
    ask(pipe)
    assert pipe.transformer.table == table
    assert table == Schedule.tier("balanced", STEPS).resolve(table.sites)


def test_switching_tiers_captures_and_compiles_nothing_anew(captures):
    pipe = dit.make(DDIMScheduler)
    dqar_fx.enable(pipe, "quality", compile={"backend": "eager"})
    ask(pipe)
    graphs, first = counters["stats"]["unique_graphs"], pipe.transformer
    assert (len(captures), graphs > 0) == (1, True)
    with torch.compiler.set_stance("fail_on_recompile"):
        for name in ("fastest", "balanced", "fast", "quality"):
            pipe.transformer = pipe.transformer.with_schedule(name)
            ask(pipe)
            assert pipe.transformer.table == Schedule.tier(name, STEPS).resolve(
                first.table.sites
            )
    assert len(captures) == 1
    assert counters["stats"]["unique_graphs"] == graphs
    assert pipe.transformer.table == first.table


@pytest.mark.parametrize("name", TIERS)
def test_short_run_computes_all_and_warns_once_for_each_length(name):
    pipe = dit.make(DDIMScheduler)
    plain = {steps: ask(pipe, steps) for steps in (3, 5)}
    dqar_fx.enable(pipe, name)
    with warnings.catch_warnings(record=True, action="always") as caught:
        found = [(steps, ask(pipe, steps)) for steps in (5, 3, 5, 3)]
    assert all(torch.equal(images, plain[steps]) for steps, images in found)
    told = [str(each.message) for each in caught if "schedule tier" in str(each.message)]
    assert [f"tier {name} computes everything in a run of {n} steps" in text
            for n, text in zip((5, 3), told, strict=True)] == [True, True]  # fmt: skip


def test_short_run_warns_of_the_tier_of_the_unconditional_stream():
    pipe = dit.make(DDIMScheduler)
    guidance = Guidance(unconditional="fast", batched="conditional_first")
    assert guidance.unconditional == Schedule.tier("fast")
    dqar_fx.enable(pipe, Schedule.interval(every=2), sites="all", guidance=guidance)
    with pytest.warns(
        UserWarning, match="schedule tier fast computes everything in a run of 5"
    ):
        ask(pipe, 5)


# ---- wherever a schedule is taken --------------------------------------------------------


@pytest.fixture(scope="module")
def prepared():
    case = make_dit(layers=2)
    return dqar_fx.transform(
        case.model, Schedule.tier("quality", 20), example_inputs=case.inputs(0)
    )


@pytest.fixture(scope="module")
def guided():
    guidance = Guidance(batched="conditional_first")
    return dqar_fx.transform(make_dit(layers=2).model, "fast", guidance=guidance)


def enter(pipe, name):
    with dqar_fx.enabled(pipe, name):
        raise AssertionError


TAKERS = {
    "transform": lambda pipe, *_: dqar_fx.transform(pipe.transformer, "swift"),
    "enable": lambda pipe, *_: dqar_fx.enable(pipe, "swift"),
    "enabled": lambda pipe, *_: enter(pipe, "swift"),
    "with_schedule": lambda _, own, __: own.with_schedule("swift"),
    "with_schedule of guidance": lambda _, __, guided: guided.with_schedule("swift"),
    "compare": lambda _, own, __: dqar_fx.compare(own, {"one": "swift"}, device="A100"),
    "report": lambda _, own, __: own.report("swift", device="A100"),
    "Guidance, unconditional": lambda *_: Guidance(unconditional="swift"),
    "Guidance, output": lambda *_: Guidance(output="swift"),
    "fit_forecasts": lambda pipe, *_: dqar_fx.fit_forecasts(pipe, [1], "swift", num_steps=9),
    "fit_solver": lambda pipe, *_: dqar_fx.fit_solver(pipe, [1], 9, schedule="swift"),
    "read_l2p": lambda *_: prior_art.read_l2p(np.eye(9), "swift"),
    "Schedule.tier": lambda *_: Schedule.tier("swift"),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_wrong_name_is_an_error_at_the_call_that_lists_the_tiers(taker, prepared, guided):
    pipe = dit.make(DDIMScheduler)
    model = pipe.transformer
    with pytest.raises(ScheduleError, match=f"'swift'.*{', '.join(TIERS)}"):
        TAKERS[taker](pipe, prepared, guided)
    assert pipe.transformer is model


def test_costs_of_tiers_are_those_of_a_run_as_long_as_the_denoisers_own(prepared):
    names = dict(zip(TIERS, TIERS, strict=True))
    reports = dqar_fx.compare(prepared, names, device="A100")
    for name in TIERS:
        expected = prepared.report(Schedule.tier(name, 20), device="A100")
        assert reports[name] == expected == prepared.report(name, device="A100")
        assert expected.num_steps == 20


def test_guided_denoiser_takes_the_name_of_a_tier(guided):
    assert guided.with_schedule("fastest")._schedule == Schedule.tier("fastest")
