"""The memory plan equals what is held; its estimate of activations is a bound."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

import dqar_fx
from dqar_fx import DqarError, Guidance, MemoryPlan, Schedule
from dqar_fx.costs.activations import StorageCounter
from tests.helpers.models import MAKERS, make_dit, make_pixart
from tests.helpers.slow_cases import slow_but

STEPS = 4
SCHEDULES = {
    "compute all": Schedule.compute_all(STEPS),
    "interval": Schedule.interval(STEPS, 2),
    "apart": Schedule.from_actions("CRCC"),
}


def prepared(case, schedule, **options):
    (first, *_) = calls(case)
    return dqar_fx.transform(case.model, schedule, example_inputs=first, **options)


def calls(case, seed=0):
    """Inputs of a trajectory whose timesteps are elements of one tensor."""
    times = torch.linspace(case.top, case.top / 10, STEPS)
    batch = case.latent_shape[0]
    return [
        {**case.inputs(step, seed), "timestep": times[step].expand(batch)}
        for step in range(STEPS)
    ]


def run(denoiser, case, seed=0):
    for step, call in enumerate(calls(case, seed)):
        with denoiser.cache_context("one", step_index=step):
            denoiser(**call)


def tensors_in(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(leaf)]


def storages_of(tensors):
    """Bytes by address."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}


def held(denoiser, case):
    """Bytes of storages by what they serve: slots, table, constant conditioning."""
    program = denoiser.program
    (stream,) = program.streams.values()
    others = storages_of([*program.captured.gm.parameters(), *program.captured.gm.buffers()])
    others |= storages_of(tensors_in(list(case.given.values())))
    tables = stream.memo.tabulated
    every_step = {
        k
        for k, stage in enumerate(program.plan.stages)
        if program.roles.timestep in stage.leaves
    }
    table = storages_of(tensors_in([t.rows for t in tables.values()]))
    constant = storages_of(
        tensors_in([v for k, v in stream.memo.outputs.items() if k not in every_step])
    )
    constant = {key: size for key, size in constant.items() if key not in others}
    return {
        "slots": sum(storages_of(stream.slots.buffers.values()).values()),
        "table": sum(table.values()),
        "constant": sum(constant.values()),
    }


# ---- exact -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured():
    """Denoisers by model and conditioning, captured once, for schedules that come later."""

    @cache
    def make(name, conditioning):
        case = MAKERS[name]()
        return case, prepared(case, Schedule.compute_all(STEPS), conditioning=conditioning)

    return make


@pytest.mark.parametrize("conditioning", ["auto", "trajectory"], ids=["step", "ahead"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", slow_but("dit", "pixart", of=MAKERS))
def test_plan_equals_what_is_held(name, schedule, conditioning, captured):
    case, computing = captured(name, conditioning)
    denoiser = computing.with_schedule(SCHEDULES[schedule])
    denoiser.prepare(**calls(case)[0])
    (stream,) = denoiser.memory.streams
    run(denoiser, case)
    planned = {"slots": stream.slots, "table": stream.table, "constant": stream.constant}
    assert planned == held(denoiser, case)


@pytest.mark.parametrize(
    ("name", "options"),
    slow_but(
        ("pixart", {}),
        of=[
            *((name, {}) for name in MAKERS),
            ("dit", {"dynamic": True}),
            ("flux", {"dynamic": True}),
            ("dit", {"unit": "whole"}),
        ],
    ),
    ids=str,
)
def test_plan_of_compiled_denoisers_equals_what_is_held(name, options):
    case = MAKERS[name]()
    denoiser = prepared(case, SCHEDULES["interval"], compile={"backend": "eager", **options})
    (stream,) = denoiser.memory.streams
    run(denoiser, case)
    planned = {"slots": stream.slots, "table": stream.table, "constant": stream.constant}
    assert planned == held(denoiser, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_plan_of_each_batch_size_equals_what_is_held(name):
    """Regions are shared; slots and conditioning are each one's own."""
    denoiser = None
    for batch in (2, 1, 3):
        case = MAKERS[name](batch=batch)
        if denoiser is None:
            options = {"compile": {"backend": "eager", "dynamic": True}}
            denoiser = prepared(case, SCHEDULES["interval"], **options)
        run(denoiser, case)
        (stream,) = denoiser.memory.streams
        planned = {"slots": stream.slots, "table": stream.table, "constant": stream.constant}
        assert planned == held(denoiser, case)


def test_plan_lowers_nothing():
    case = make_dit(layers=3)

    def refuse(gm, _):
        raise AssertionError("compiled")

    denoiser = prepared(case, SCHEDULES["apart"], compile={"backend": refuse})
    assert denoiser.memory.held > 0
    assert not denoiser.program.variants


def test_plan_parameters_are_those_of_the_model():
    case = make_dit(layers=3)
    plan = prepared(case, SCHEDULES["interval"]).memory
    tensors = [*case.model.parameters(), *case.model.buffers()]
    assert plan.parameters.total >= sum(storages_of(tensors).values())
    assert plan.released == 0
    assert plan.kept == plan.parameters.total
    assert plan.held == plan.kept + plan.slots + plan.conditioning
    assert plan.peak == plan.held + plan.activations


def test_plan_released_parameters_are_not_kept():
    case = make_dit(layers=3)
    denoiser = prepared(case, SCHEDULES["interval"], release="disk")
    plan = denoiser.memory
    assert plan.released == plan.parameters.released > 0
    assert plan.kept == plan.parameters.step
    assert "of these on disk while steps run" in str(plan)
    run(denoiser, case)
    assert denoiser.released_bytes == plan.released
    assert denoiser.memory == plan
    assert denoiser.released_bytes == plan.released  # nothing was brought back for the plan
    in_place = prepared(case, SCHEDULES["interval"], release="host").memory
    assert in_place.released == 0  # host memory is where they are


def test_plan_of_dropped_conditioning_is_what_is_left():
    case = make_dit(layers=3)
    times = torch.tensor([900.0, 600.0])
    denoiser = dqar_fx.transform(
        case.model,
        SCHEDULES["interval"],
        conditioning="trajectory",
        example_inputs={**case.inputs(0), "timestep": times[0].expand(2)},
    )
    before = denoiser.memory.parameters
    labels = case.given["class_labels"].tolist()
    denoiser.drop_conditioning(times, class_labels=labels)
    after = denoiser.memory
    assert (after.parameters, after.place) == (before, "drop")
    assert after.released == before.released
    assert "of these dropped" in str(after)
    for step, timestep in enumerate(times):
        with denoiser.cache_context("one", step_index=step):
            denoiser(**{**case.inputs(step), "timestep": timestep.expand(2)})
    assert denoiser.memory == after
    (stream,) = denoiser.program.streams.values()
    tables = denoiser.program.fixed.tables
    assert after.fixed == sum(storages_of(tables).values())
    places = storages_of(tensors_in(stream.memo.outputs))
    assert [(s.table, s.constant) for s in after.streams] == [(0, sum(places.values()))]


@pytest.mark.parametrize("keep", ["output", "difference"])
def test_plan_of_guidance_has_both_streams_and_the_whole_output(keep):
    case = make_dit(batch=2, layers=3)
    every = Schedule.interval(STEPS, 2)
    guidance = Guidance(output=every, keep=keep, batched="conditional_first")
    denoiser = prepared(case, every, guidance=guidance)
    plan = denoiser.memory
    assert [stream.name for stream in plan.streams] == ["conditional", "unconditional"]
    assert plan.slots == denoiser.cache_bytes
    assert plan.streams[0].output == 0 < plan.streams[1].output


def test_plan_sites_that_share_take_nothing_of_their_own():
    case = make_dit(layers=3)
    denoiser = prepared(case, Schedule.from_actions(["CRCCCC", "CCCRCC", "CCCCCC"]))
    (stream,) = denoiser.memory.streams
    first, second = stream.sites.values()
    assert (first, second) == (denoiser.cache_bytes, 0)
    assert stream.saved == denoiser.cache_bytes
    assert "saved by sharing slots" in str(denoiser.memory)


# ---- activations -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"keep": "kv", "cache": "int8"}], ids=["plain", "kv"])
@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_activations_bound_what_a_step_allocates(name, options):
    case = MAKERS[name]()
    denoiser = dqar_fx.transform(
        case.model, SCHEDULES["interval"], example_inputs=case.inputs(0), **options
    )
    (stream,) = denoiser.memory.streams
    planned = denoiser.memory.activations + stream.constant
    inputs = [case.inputs(step) for step in range(STEPS)]
    for step, each in enumerate(inputs):  # makes the graphs of rows, which takes memory
        with denoiser.cache_context("one", step_index=step):
            denoiser(**each)
    denoiser.reset()
    most = 0
    for step, each in enumerate(inputs):
        with denoiser.cache_context("one", step_index=step):
            slots = [
                b for s in denoiser.program.streams.values() for b in s.slots.buffers.values()
            ]
            own = [*denoiser.parameters(), *denoiser.buffers(), *slots, *tensors_in(each)]
            with StorageCounter(own) as counter:
                denoiser(**each)
        allocated = denoiser.cache_bytes if step == 0 else 0  # slots, at the first call
        most = max(most, counter.peak - allocated)
    assert most <= planned <= 3 * most


def test_storage_counter_counts_what_is_alive():
    x = torch.ones(1000)
    with StorageCounter([x]) as counter:
        y = x + 1
        assert (counter.now, counter.peak) == (4000, 4000)
        z = y[:10].neg()
        del y
        assert (counter.now, counter.peak) == (40, 4040)
        x.add_(1)
    assert z.numel() == 10
    assert (counter.now, counter.peak) == (40, 4040)


# ---- texts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan():
    return prepared(make_pixart(), SCHEDULES["interval"]).memory


def test_plan_json_and_back_is_equal(plan):
    assert MemoryPlan.from_json(plan.to_json()) == plan
    for text in ("", "{}", "[]", json.dumps({"streams": 3})):
        with pytest.raises(DqarError, match="no memory plan in JSON"):
            MemoryPlan.from_json(text)


def test_plan_text_has_a_line_for_each_part(plan):
    text = str(plan)
    for part in ("slots of transformer_blocks.0.attn1", "conditioning that is constant"):
        assert f"{part} (every stream)" in text
    for part in ("parameters of the step", "held between steps", "peak, estimated"):
        assert part in text
    assert "of these" not in text
    lines = [line for line in plan.lines() if not line.is_sum]
    assert sum(line.nbytes for line in lines) == plan.peak
    assert plan.peak == plan.held + plan.activations
    (stream,) = plan.streams
    sites = {f"blocks.{k}": 1000 for k in range(30)}
    many = replace(plan, streams=(replace(stream, sites=sites),))
    assert "slots of 18 sites more" in str(many)


def test_report_has_the_plan(plan):
    case = make_pixart()
    denoiser = prepared(case, SCHEDULES["interval"])
    report = denoiser.report(device="A100")
    assert report.memory == denoiser.memory
    assert str(report.memory) in str(report)
    assert report.memory.slots == report.cache_bytes


def test_plan_before_capture_says_so():
    denoiser = dqar_fx.transform(make_dit(layers=2).model, SCHEDULES["interval"])
    with pytest.raises(DqarError, match="nothing has been captured yet"):
        _ = denoiser.memory
