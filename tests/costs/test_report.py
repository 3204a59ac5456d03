"""Counted costs equal what PyTorch counts and what is allocated; predictions are ordered."""

import json
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

import dqar_fx
from benchmarks.harness.macs import count_macs, to_meta
from dqar_fx import DqarError, Guidance, Report, Schedule, ScheduleError
from dqar_fx.costs import DATASHEETS
from dqar_fx.costs.kernels import COST_KINDS
from dqar_fx.plan.slots import Slots
from tests.helpers.models import make_dit, make_sd3
from tests.helpers.slow_cases import slow_but

STEPS, LAYERS = 6, 3
SCHEDULES = {
    "compute all": Schedule.compute_all(STEPS),
    "linear": Schedule.linear(STEPS, 1),
    "interval": Schedule.interval(STEPS, 3),
    "forecast": Schedule.interval(STEPS, 3, warmup=2).forecast(1),
}
A100 = DATASHEETS["A100"]


@pytest.fixture(scope="module")
def cases():
    return {"dit": make_dit(layers=LAYERS), "sd3": make_sd3()}


@pytest.fixture(scope="module")
def batch_signature(cases):
    """Per model a denoiser whose graphs can follow every schedule here."""
    return {name: prepared(case, SCHEDULES["forecast"]) for name, case in cases.items()}


@pytest.fixture(scope="module")
def compiled(cases):
    return prepared(cases["dit"], SCHEDULES["forecast"], compile="regional")


@pytest.fixture(scope="module")
def denoiser(cases):
    return prepared(cases["dit"], SCHEDULES["interval"])


@pytest.fixture(scope="module")
def report(denoiser):
    return denoiser.report(device="A100")


def prepared(case, schedule, **options):
    return dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0), **options)


@torch.no_grad()
def run_trajectory(denoiser, case):
    for step in range(STEPS):
        with denoiser.cache_context("one", step_index=step):
            denoiser(**case.inputs(step))


# ---- MACs --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", slow_but("dit", of=["dit", "sd3"]))
@pytest.mark.parametrize("name", SCHEDULES)
def test_report_macs_equal_those_of_a_run(model, name, cases, batch_signature):
    denoiser = batch_signature[model].with_schedule(SCHEDULES[name])
    counted = count_macs(lambda: run_trajectory(denoiser, cases[model]))
    assert denoiser.report(device="A100").macs == counted


@pytest.mark.parametrize("model", ["dit", "sd3"])
def test_report_untransformed_macs_equal_the_models(model, cases, batch_signature):
    case = cases[model]
    counted = count_macs(lambda: case.model(**case.inputs(0)))
    assert batch_signature[model].report(device="A100").untransformed_macs == STEPS * counted


@pytest.mark.parametrize(
    ("sites", "keep"),
    slow_but(("self", "kv"), of=[("all", "output"), ("block", "output"), ("self", "kv")]),
)
def test_report_macs_of_other_sites_equal_those_of_a_run(sites, keep, cases):
    case = cases["dit"]
    denoiser = prepared(case, SCHEDULES["interval"], sites=sites, keep=keep, cache="int8")
    counted = count_macs(lambda: run_trajectory(denoiser, case))
    assert denoiser.report(device="A100").macs == counted


def test_report_rows_add_up_to_the_trajectory(report):
    rows = sum(row.cost.macs * len(row.steps) for row in report.rows)
    assert rows + report.conditioning.macs == report.macs
    assert sorted(step for row in report.rows for step in row.steps) == list(range(STEPS))
    assert sum(cost.ms for cost in report.costs.values()) == pytest.approx(report.ms)
    assert set(report.costs) == set(COST_KINDS)


def test_report_kinds_are_those_on_paper(cases, report):
    """Attention: 4 projections and 2 products; feed-forward: 2 projections of 4 times."""
    tokens, width, layers, batch = 36, 60, LAYERS, 2
    row = next(row for row in report.rows if set(row.actions) == {"S"})
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    assert row.costs["attention"].macs == layers * batch * attention
    assert row.costs["feed_forward"].macs == layers * batch * 8 * tokens * width**2
    assert row.costs["slots"].nbytes == report.cache_bytes


def test_report_counts_the_same_where_compiled(batch_signature, compiled):
    eager, fused = (each.report(device="A100") for each in (batch_signature["dit"], compiled))
    assert (eager.lowering, fused.lowering) == ("eager", "regional")
    assert fused.macs == eager.macs
    assert fused.cost.nbytes < eager.cost.nbytes  # what is fused is not written


def test_report_on_meta_counts_as_on_the_cpu(cases, report):
    case = cases["dit"]
    meta, call = to_meta(case.model), {k: v.to("meta") for k, v in case.inputs(0).items()}
    denoiser = dqar_fx.transform(meta, SCHEDULES["interval"], example_inputs=call)
    found = denoiser.report(device="A100")
    for name in ("macs", "untransformed_macs", "cache_bytes", "ceiling", "full_reuse_ceiling"):
        assert getattr(found, name) == getattr(report, name)
    assert found.cost.nbytes == pytest.approx(report.cost.nbytes, rel=0.1)  # other layouts
    assert dqar_fx.measure_profile(denoiser, budget_s=0.01).source == "measured"


def test_report_full_reuse_is_amdahls_ceiling(denoiser, report):
    assert 1 < report.ceiling < report.full_reuse_ceiling
    assert report.reused.macs < report.computed.macs
    whole = Schedule.from_actions("S" + "R" * (STEPS - 1))
    found = denoiser.report(whole, device="A100")
    assert report.ceiling < found.ceiling < found.full_reuse_ceiling


# ---- slots -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_report_cache_bytes_equal_what_is_allocated(name, batch_signature):
    check_cache_bytes(batch_signature["dit"].with_schedule(SCHEDULES[name]))


@pytest.mark.parametrize("cache", slow_but("int8", of=["int8", "fp16"]))
def test_report_cache_bytes_of_other_formats_equal_what_is_allocated(cache, cases):
    check_cache_bytes(prepared(cases["dit"], SCHEDULES["linear"], cache=cache))


def check_cache_bytes(denoiser):
    program = denoiser.program
    slots = Slots(program.slot_specs, len(program.table.sites), program.history)
    found = denoiser.report(device="A100").cache_bytes
    assert found == denoiser.cache_bytes == slots.nbytes


# ---- devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASHEETS)
def test_report_of_a_datasheet_is_marked(name, denoiser):
    found = denoiser.report(device=name)
    assert found.source == "datasheet"
    assert f"{name} (datasheet, not measured)" in str(found)


def test_report_a_faster_device_takes_less(denoiser):
    slow = replace(A100, macs_per_s={"float32": 1e9}, bytes_per_s=1e9)
    assert denoiser.report(device="A100").ms < denoiser.report(device=slow).ms


def test_report_measured_knows_every_operator(denoiser):
    profile = dqar_fx.measure_profile(denoiser, device="cpu", budget_s=0.05)
    found = denoiser.report(device=profile)
    assert found.source == profile.source == "measured"
    assert "not measured" not in str(found)
    assert found.ms > 0
    assert profile.bytes_per_s > 0
    assert all(seconds > 0 for seconds in profile.operation_s.values())
    assert json.loads(json.dumps(profile.to_dict()))["source"] == "measured"


@pytest.mark.parametrize("lowering", slow_but("eager", of=["eager", "regional"]))
def test_report_more_reuse_never_takes_longer(lowering, batch_signature, compiled):
    denoiser = {"eager": batch_signature["dit"], "regional": compiled}[lowering]
    chains = {f"{n} sites": more_sites(n) for n in range(LAYERS + 1)}
    profile = dqar_fx.measure_profile(denoiser, tuple(chains.values()), budget_s=0.05)
    for device in ("A100", profile):
        found = dqar_fx.compare(denoiser, chains, device=device)
        times = [each.ms for each in found.values()]
        assert times == sorted(times, reverse=True)
        macs = [each.macs for each in found.values()]
        assert macs == sorted(set(macs), reverse=True)


def more_sites(num_reusing):
    return Schedule.from_actions(
        [[step > 0 and site < num_reusing for site in range(LAYERS)] for step in range(STEPS)]
    )


# ---- comparing ---------------------------------------------------------------------------


def test_compare_compiles_nothing(compiled):
    before = {name: dict(counts) for name, counts in counters.items()}
    found = dqar_fx.compare(compiled, SCHEDULES, device="A100")
    assert {name: dict(counts) for name, counts in counters.items()} == before
    assert not compiled.program.variants
    assert list(found) == list(SCHEDULES)
    assert found["interval"].speed > found["compute all"].speed
    assert found["interval"] == compiled.report(SCHEDULES["interval"], device="A100")


def test_report_guidance_counts_both_streams(cases, denoiser):
    every = Schedule.interval(STEPS, 2)
    two = prepared(cases["dit"], SCHEDULES["interval"], guidance=Guidance())
    less = two.with_schedule(SCHEDULES["interval"], guidance=Guidance(output=every))
    one, both, fewer = (each.report(device="A100") for each in (denoiser, two, less))
    assert both.macs == 2 * one.macs
    assert fewer.macs < both.macs
    assert fewer.cache_bytes == less.cache_bytes > both.cache_bytes
    assert {row.stream for row in both.rows} == {0, 1}


# ---- texts -------------------------------------------------------------------------------


def test_report_says_where_the_time_goes(report):
    text = str(report)
    assert f"{LAYERS}S" in text
    assert f"{LAYERS}R" in text
    assert all(kind in text for kind in COST_KINDS)
    assert "ceiling by MACs" in text


def test_report_json_and_back_is_equal(report):
    assert Report.from_json(report.to_json()) == report
    for text in ("", "{}", "[]", '{"rows": 3}'):
        with pytest.raises(DqarError, match="no report in JSON"):
            Report.from_json(text)


# ---- wrong inputs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("B200", r"device='B200' is unknown. Known are A100, H100, H200, T4 \(datasheets\)"),
        (7, "device=7: expected the name of a datasheet"),
        ("cpu:x", "device='cpu:x' cannot be measured here"),
    ],
)
def test_report_unknown_device_says_what_is_known(device, message, denoiser):
    with pytest.raises(DqarError, match=message):
        denoiser.report(device=device)


def test_report_before_capture_says_so(cases):
    denoiser = dqar_fx.transform(cases["dit"].model, SCHEDULES["interval"])
    with pytest.raises(DqarError, match="nothing has been captured yet"):
        denoiser.report(device="A100")


def test_report_schedule_that_does_not_fit_says_so(denoiser):
    with pytest.raises(ScheduleError):
        denoiser.report(Schedule.from_actions(["CC"] * 2), device="A100")
    with pytest.raises(ScheduleError, match=r"'linear': expected a dqar_fx\.Schedule, or"):
        denoiser.report("linear", device="A100")
    with pytest.raises(ScheduleError, match="forecasts read 2 steps of each site, but"):
        denoiser.report(SCHEDULES["forecast"], device="A100")
