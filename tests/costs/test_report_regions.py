"""Regions that are measured are those that run, each once; reports sum them up."""

from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

import dqar_fx
from benchmarks.harness.geometry import draw_timesteps
from benchmarks.harness.macs import to_meta
from dqar_fx import DqarError, Guidance, Schedule
from dqar_fx.conditioning.conditioning import Conditioning
from dqar_fx.costs.clocks import StepTimes
from dqar_fx.costs.measure_regions import (
    choose_rows,
    inner_mean,
    measure_regions,
    stagger_rows,
    take_turn,
)
from dqar_fx.costs.rehearsal import Rehearsal, RowProgram
from dqar_fx.costs.rows import StreamTable, all_computed_table, list_rows, streams_of
from dqar_fx.costs.workload import ahead_key, region_key
from dqar_fx.costs.workload_counter import WorkloadCounter
from dqar_fx.passes.support.graphs import structure_of
from dqar_fx.program.lowering import Lowering
from dqar_fx.steps.position import Position
from tests.helpers.models import make_dit, make_flux, make_sd3
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.slow

STEPS, LAYERS = 6, 3
INSIDE_BLOCKS = ["all", "block", ["block", "all"]]
SITES = ["attention", "all", "block", "span", ["block", "all"]]
CPU = torch.device("cpu")
LINEAR, EVERY = Schedule.linear(STEPS, 1), Schedule.interval(STEPS, 2)
FORECAST = Schedule.interval(STEPS, 3, warmup=2).forecast(1)
MIXED = Schedule.from_actions(["CCRCRC", "CRCRRC", "CCRCCR"])


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=LAYERS)


@pytest.fixture
def denoiser(case):
    return prepared(case, LINEAR)


def prepared(case, schedule, **options):
    return dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0), **options)


def run_trajectory(denoiser, case, num_steps=STEPS):
    """Called as pipelines call: each timestep is an element of one tensor."""
    timesteps = draw_timesteps(num_steps).to(torch.float32)
    given = {name: value.clone() for name, value in case.given.items()}
    outputs = []
    for step, timestep in enumerate(timesteps):
        call = case.inputs(step) | given
        call["timestep"] = timestep.expand(len(call["timestep"]))
        outputs.append(denoiser(**call)[0])
    return outputs


def count_calls(case, schedule, **options):
    """How often a trajectory calls each region, counted while it runs."""
    called = Counter()

    def lower(self, gm):
        key, forward = region_key(structure_of(gm)), gm.forward

        def run(*args):
            called[key] += 1
            return forward(*args)

        return run

    with patch.object(Lowering, "lower", lower):
        denoiser = prepared(case, schedule, **options)
        run_trajectory(denoiser, case)
    return called, denoiser


def count_predicted(denoiser):
    counter, table = WorkloadCounter(denoiser.program), denoiser.table
    total = counter.count_conditioning(streams_of(denoiser)[0]).regions
    for step in range(table.num_steps):
        total += counter.count_row(table.row(step)).regions
    return total


# ---- what is counted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "schedule"),
    slow_but(
        (["block", "all"], FORECAST),
        of=[(sites, FORECAST) for sites in SITES] + [("attention", LINEAR), ("all", EVERY)],
    ),
)
def test_regions_counted_are_those_that_run(sites, schedule, case):
    called, denoiser = count_calls(case, schedule, sites=sites)
    assert count_predicted(denoiser) == called


def test_regions_counted_where_compiled_are_those_that_run(case):
    called, denoiser = count_calls(case, MIXED, compile="regional")
    predicted = count_predicted(denoiser)
    assert predicted.pop(ahead_key(STEPS)) == 1
    counter, stages = WorkloadCounter(denoiser.program), denoiser.program.plan.stages
    lives, ahead = denoiser.program.liveness.of_table(), denoiser.program.ahead
    for stage, live in zip(stages, lives, strict=True):
        if ahead.tabulates(stage, live, STEPS):  # what is evaluated ahead calls no region
            assert not predicted.keys() & counter.count_plan(stage.plan, ()).regions.keys()
    assert predicted == called


# ---- what is run -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedules", [(), (LINEAR,), (LINEAR, EVERY, MIXED)], ids=["one", "two", "four"]
)
def test_rows_that_are_run_have_all_sites_alike(schedules, denoiser):
    chosen = choose_rows(denoiser, schedules)
    assert ["".join(action.letter for action in row) for row in chosen] == [
        "SSS",
        "CCC",
        "RRR",
    ]


@pytest.mark.parametrize("sites", slow_but(["block", "all"], of=INSIDE_BLOCKS))
def test_rows_that_are_run_call_every_region(sites, case):
    denoiser = prepared(case, FORECAST, sites=sites)
    drawn = torch.rand(STEPS, len(denoiser.table.sites)) < 0.5
    schedules = (EVERY, Schedule.from_actions(drawn.numpy() & (EVERY_STEP > 0)))
    counter = WorkloadCounter(denoiser.program)

    def regions(rows):
        return set().union(*(counter.count_row(row).regions for row in rows))

    chosen, rows = choose_rows(denoiser, schedules), list_rows(denoiser, schedules)
    assert regions(chosen) >= regions(rows)
    assert len(chosen) <= len(regions(rows))


def test_staggered_rows_have_each_action_at_each_site(denoiser):
    staggered = stagger_rows(denoiser, choose_rows(denoiser, ()))
    letters = ["".join(action.letter for action in row) for row in staggered]
    assert letters == ["SCR", "CRS", "RSC"]


@pytest.mark.parametrize("sites", slow_but(["block", "all"], of=INSIDE_BLOCKS))
def test_staggered_rows_call_no_other_regions(sites, case):
    denoiser = prepared(case, FORECAST, sites=sites)
    counter, chosen = WorkloadCounter(denoiser.program), choose_rows(denoiser, (EVERY,))
    known = set().union(*(counter.count_row(row).regions for row in chosen))
    staggered = stagger_rows(denoiser, chosen)
    assert all(counter.count_row(row).regions.keys() <= known for row in staggered)


EVERY_STEP = torch.arange(STEPS)[:, None].numpy()


def test_rehearsal_times_each_call_of_a_row(denoiser):
    rows = choose_rows(denoiser, ())
    counter = WorkloadCounter(denoiser.program)
    rehearsal = Rehearsal(denoiser, CPU)
    rehearsal.run(rows)
    for row, step in zip(3 * rows, rehearsal.run(3 * rows), strict=True):
        called = Counter(name for name, _ in step.calls)
        assert counter.count_row(row).regions.items() <= called.items()
        assert all(seconds > 0 for _, seconds in step.calls)


def test_given_rows_are_computed_as_a_table_has_them(denoiser, case):
    observed = []

    def observe(variant):
        return lambda *args: observed.append(variant) or variant.function(*args)

    program, stream = RowProgram.like(denoiser.program, observe), ("given", 0)
    trajectory = object()
    for step in range(STEPS):
        leaves = torch.utils._pytree.tree_leaves(case.inputs(step))
        position = Position(trajectory, stream, step)
        expected = denoiser.program.run(leaves, position)
        program.next_row = denoiser.table.row(step)
        found = program.run(leaves, position)
        assert all(map(torch.equal, found, expected))
        assert {id(v.function) for v in observed} <= {
            id(v.function) for v in denoiser.program.variants.values()
        }
        assert len(observed) > 0
    assert not any(program.streams[stream].slots.slot_state.kept)  # nothing counts as kept


def test_rehearsal_evaluates_all_conditioning_of_each_prompt(denoiser):
    rehearsal = Rehearsal(denoiser, CPU)
    once = StreamTable(all_computed_table(denoiser.program, 1), (True,))
    expected = WorkloadCounter(denoiser.program).count_conditioning(once).regions
    for num_steps in (STEPS, STEPS, 3):
        called = Counter(name for name, _ in rehearsal.evaluate_conditioning(num_steps).own)
        assert called == expected


def test_rehearsal_keeps_the_conditioning_that_is_evaluated_ahead(case):
    denoiser = prepared(case, LINEAR, compile={"backend": "eager"})
    rehearsal, rows = Rehearsal(denoiser, CPU), choose_rows(denoiser, ())
    with patch.object(Conditioning, "_tabulate", autospec=True) as tabulate:
        tabulate.side_effect = TABULATE
        rehearsal.run(4 * rows)
        stages = denoiser.program.plan.stages
        ahead = [s for s in stages if denoiser.program.roles.timestep in s.leaves]
        assert tabulate.call_count == len(ahead) > 0
        rehearsal.evaluate_conditioning(STEPS)
        assert tabulate.call_count == 2 * len(ahead)


TABULATE = Conditioning._tabulate


def test_inner_mean_leaves_out_a_quarter_at_either_end():
    assert inner_mean([7.0]) == 7.0
    assert inner_mean([2.0, 100.0, 0.0, 4.0]) == 3.0


def test_step_times_add_up():
    step = StepTimes((("a", 1.0, 2.0), ("b", 3.0, 5.0)), 10.0)
    assert step.own == [("a", 1.0), ("b", 2.0)]
    assert step.calls == [("a", 1.0), ("b", 3.0)]
    assert (step.rest_s, step.outside_s) == (6.0, 7.0)
    assert StepTimes((), 3.0).rest_s == StepTimes((), 3.0).outside_s == 3.0


@pytest.mark.parametrize("make", slow_but(make_dit, of=[make_dit, make_sd3, make_flux]))
def test_regions_of_every_family_are_known(make):
    case = make()
    denoiser = prepared(case, FORECAST, cache="int8")
    profile = dqar_fx.measure_profile(denoiser, (EVERY,), by="regions", budget_s=0.01)
    found = denoiser.report(device=profile)
    assert found.how == "measured by regions"
    assert found.ms > 0
    assert sum(cost.ms for cost in found.costs.values()) == pytest.approx(found.ms)


@pytest.mark.slow
def test_regions_of_trajectories_of_several_lengths_are_known(case):
    denoiser = prepared(case, LINEAR, compile={"backend": "eager"})
    others = [Schedule.compute_all(1), Schedule.interval(20, 3)]
    times = measure_regions(denoiser, others, CPU, 0.01)
    assert {ahead_key(steps) for steps in (1, STEPS, 20)} <= times.region_s.keys()
    assert times.step_s > 0


@pytest.mark.slow
def test_regions_of_a_turn_do_not_depend_on_its_number(denoiser):
    rows = choose_rows(denoiser, ())
    rehearsal = Rehearsal(denoiser, CPU)
    take_turn(rehearsal, rows, {STEPS})
    turns = [take_turn(rehearsal, rows, {STEPS}).keys() for _ in range(3)]
    assert turns[0] == turns[1] == turns[2]


@pytest.mark.slow
def test_regions_with_guidance_are_known(case):
    output = Schedule.interval(STEPS, 2)
    denoiser = prepared(case, LINEAR, guidance=Guidance(unconditional=EVERY, output=output))
    profile = dqar_fx.measure_profile(denoiser, by="regions", budget_s=0.01)
    assert denoiser.report(device=profile).how == "measured by regions"


def test_measuring_leaves_the_denoiser_as_it_was(case, denoiser):
    before = run_trajectory(denoiser, case)
    dqar_fx.measure_profile(denoiser, by="regions", budget_s=0.01)
    assert list(denoiser.program.streams) == [(None, 0)]
    after = run_trajectory(denoiser, case)
    assert all(map(torch.equal, before, after))


def test_measuring_compiles_what_trajectories_need_and_they_no_more(case):
    expanded = case.inputs(0)["timestep"][:1].expand(2)
    call = case.inputs(0) | {"timestep": expanded}
    denoiser = dqar_fx.transform(
        case.model, LINEAR, compile={"backend": "eager"}, example_inputs=call
    )
    dqar_fx.measure_profile(denoiser, (MIXED,), by="regions", budget_s=0.01)
    compiled, variants = counters["stats"]["unique_graphs"], set(denoiser.program.variants)
    for schedule in (LINEAR, MIXED):
        with torch.compiler.set_stance("fail_on_recompile"):
            run_trajectory(denoiser.with_schedule(schedule), case)
    assert counters["stats"]["unique_graphs"] == compiled
    assert set(denoiser.program.variants) == variants


@pytest.mark.slow
def test_measuring_where_conditioning_is_released_brings_it_back(case):
    denoiser = prepared(case, LINEAR, conditioning="trajectory", release="disk")
    before = run_trajectory(denoiser, case)
    times = measure_regions(denoiser, (), CPU, 0.01)
    assert times.region_s[ahead_key(STEPS)] > 0
    denoiser.reset()
    assert all(map(torch.equal, before, run_trajectory(denoiser, case)))


# ---- what is reported --------------------------------------------------------------------


def with_regions(denoiser, schedules, *, region_s, step_s):
    """A profile in which each call of a region takes as long."""
    profile = dqar_fx.measure_profile(denoiser, schedules, budget_s=0.01)
    counter = WorkloadCounter(denoiser.program)
    works = [counter.count_row(row) for row in list_rows(denoiser, schedules)]
    everything = StreamTable(all_computed_table(denoiser.program, STEPS), (True,) * STEPS)
    works += map(counter.count_conditioning, [everything, *streams_of(denoiser)])
    keys = set().union(*(work.regions for work in works))
    return replace(profile, region_s=dict.fromkeys(keys, region_s), step_s=step_s)


def test_report_by_regions_is_the_sum_of_calls_and_steps(case):
    called, denoiser = count_calls(case, MIXED)
    profile = with_regions(denoiser, (), region_s=0.25, step_s=0.5)
    found = denoiser.report(device=profile)
    assert found.ms == pytest.approx(1e3 * (0.25 * called.total() + 0.5 * STEPS))
    assert found.costs["overhead"].ms >= 1e3 * 0.5 * STEPS


def test_report_with_an_unknown_region_is_by_operators_alone(denoiser):
    profile = with_regions(denoiser, (), region_s=0.25, step_s=0.5)
    least = replace(profile, region_s=dict(list(profile.region_s.items())[1:]))
    found = denoiser.report(device=least)
    assert found.how == "measured by operators"
    assert found == denoiser.report(device=replace(profile, region_s={}))


@pytest.mark.parametrize(
    ("device", "compiled", "how"),
    slow_but(
        ("cpu", None, "operators"),
        of=[
            (None, {"backend": "eager"}, "regions"),
            (None, None, "regions"),
            (None, {"unit": "whole", "backend": "eager"}, "operators"),
            ("cpu", None, "operators"),
        ],
    ),
)
def test_report_of_the_own_device_is_by_regions(device, compiled, how, case):
    denoiser = prepared(case, EVERY, compile=compiled)
    found = denoiser.report(device=device)
    assert found.how == f"measured by {how}"
    assert f"(measured by {how})" in str(found)


# ---- wrong inputs ------------------------------------------------------------------------


def test_measure_profile_by_something_else_says_what_is_known(denoiser):
    with pytest.raises(DqarError, match="by='graphs' is unknown; known are operators, reg"):
        dqar_fx.measure_profile(denoiser, by="graphs")


def test_measure_regions_where_conditioning_was_dropped_says_so(case):
    denoiser = prepared(case, LINEAR, conditioning="trajectory")
    denoiser.drop_conditioning(draw_timesteps(STEPS), class_labels=[1])
    with pytest.raises(DqarError, match="parameters were dropped"):
        dqar_fx.measure_profile(denoiser, by="regions")
    assert denoiser.report().how == "measured by operators"


def test_measure_regions_where_the_denoiser_is_not_says_so(case):
    call = {name: value.to("meta") for name, value in case.inputs(0).items()}
    denoiser = dqar_fx.transform(to_meta(case.model), EVERY, example_inputs=call)
    with pytest.raises(
        DqarError, match="regions are measured where the denoiser is, on 'meta"
    ):
        dqar_fx.measure_profile(denoiser, by="regions")
