"""Compiled lowerings: counts of graphs, breaks and recompiles; errors against eager."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.passes import FORMATS, TensorSpec
from tests.helpers.lowered_variants import count_variants
from tests.helpers.models import MAKERS, make_dit, seeded
from tests.helpers.rewrite_checks import LOSSY
from tests.helpers.slow_cases import slow_but

STEPS = 50
pytestmark = pytest.mark.usefixtures("fresh_counters")


def trajectory(denoiser, case, seed=0, steps=STEPS, labels=None):
    results = []
    for step in range(steps):
        inputs = case.inputs(step, seed)
        if labels is not None:
            inputs["class_labels"] = labels
        results.append(denoiser(**inputs).sample.clone())
    return results


@pytest.mark.parametrize(
    ("cache", "keep", "steps"),
    slow_but(
        ("int8", "kv", 20),
        of=[
            ("same", "output", STEPS),
            ("int8", "output", 20),
            ("fp8", "output", 20),
            ("int8", "kv", 20),
        ],
    ),
)
def test_regional_compiles_three_graphs_per_block_structure_whatever_the_rows(
    cache, keep, steps
):
    case = make_dit(layers=12)
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.linear(steps, max_age=7),
        cache=cache,
        keep=keep,
        compile={"backend": "aot_eager"},
    )
    trajectory(denoiser, case, steps=steps)
    assert len(denoiser.table.rows) > 10
    assert counters["stats"]["unique_graphs"] == len(denoiser.program.variants)
    plan = denoiser.program.plan
    guarded = [call for call in plan.calls if call.columns]
    assert len(guarded) == 12
    assert len({call.region for call in guarded}) == 1
    assert count_variants(denoiser.program.lowering, plan.regions[guarded[0].region]) == 3
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        trajectory(denoiser, case, seed=1, steps=steps, labels=torch.tensor([4, 9]))
    assert counters["stats"]["unique_graphs"] == len(denoiser.program.variants)


def test_whole_compiles_one_graph_per_distinct_row():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.linear(8, warmup=2),
        compile={"unit": "whole", "backend": "aot_eager"},
    )
    trajectory(denoiser, case, steps=8)
    rows = len(denoiser.table.rows)
    (region,) = denoiser.program.plan.regions.values()
    assert count_variants(denoiser.program.lowering, region) == rows
    with torch.compiler.set_stance("fail_on_recompile"):
        trajectory(denoiser, case, seed=1, steps=8)


@pytest.mark.parametrize("unit", slow_but("regional", of=["regional", "whole"]))
@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_compiled_equals_eager_within_rounding(name, unit):
    case = MAKERS[name]()
    schedule = Schedule.interval(4, 2, warmup=1)
    eager = dqar_fx.transform(case.model, schedule)
    compiled = dqar_fx.transform(
        case.model, schedule, compile={"unit": unit, "backend": "aot_eager"}
    )
    for step in range(4):
        expected = eager(**case.inputs(step)).sample
        result = compiled(**case.inputs(step)).sample
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", slow_but("same", of=["same", "bf16"]))
def test_inductor_regions_equal_eager_within_rounding(cache):
    case = make_dit(layers=3)
    schedule = Schedule.interval(4, 2, warmup=1)
    eager = dqar_fx.transform(case.model, schedule, cache=cache)
    compiled = dqar_fx.transform(case.model, schedule, cache=cache, compile="regional")
    for step in range(4):
        expected = eager(**case.inputs(step)).sample
        result = compiled(**case.inputs(step)).sample
        tolerance = 1e-4 if cache == "same" else 3e-2
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    with torch.compiler.set_stance("fail_on_recompile"):
        trajectory(compiled, case, seed=1, steps=4)


def compiled_round_trip(*values):
    """Per value and lossy format, the buffers after a compiled write."""

    @torch.compile(fullgraph=True)
    def write(value, *buffers):
        for name, mine in zip(LOSSY, buffers, strict=True):
            FORMATS[name].write(value, mine)

    results = []
    for value in values:
        spec = TensorSpec.of(value)
        buffers = [[s.allocate() for s in FORMATS[name].specs(spec)] for name in LOSSY]
        write(value, *buffers)
        results.append(dict(zip(LOSSY, buffers, strict=True)))
    return results


def test_inductor_formats_stay_within_their_bound():
    """A compiler may leave out no rounding that reading relies on."""
    value = seeded(2, 36, 60)
    (kept,) = compiled_round_trip(value)
    for name, buffers in kept.items():
        read, bound = FORMATS[name].read(buffers, value.dtype), FORMATS[name].bound(value)
        share = (read.double() - value.double()).abs() / bound
        assert share.max() <= 1, (name, share.max())
        assert not buffers[-1], name


def test_inductor_formats_flag_what_overflows():
    """What is flagged is what is kept, not what it was rounded from."""
    values = [seeded(2, 36, 60) for _ in range(3)]
    for value, bad in zip(values, (65520.0, 3.3962e38, torch.nan), strict=True):
        value[1, 2, 3] = bad
    flagged = [
        {name for name, buffers in kept.items() if buffers[-1]}
        for kept in compiled_round_trip(*values)
    ]
    assert flagged == [{"fp16"}, {"fp16", "bf16"}, set(LOSSY)]


def check_kept(found, expected):
    """Kept by two lowerings: an element may round to a neighbour, a scale too."""
    assert found.keys() == expected.keys()
    for key, buffer in found.items():
        if buffer.dtype == torch.int8:
            steps = (buffer.int() - expected[key].int()).abs()
            assert steps.max() <= 1
            assert steps.float().mean() < 0.005
        else:
            torch.testing.assert_close(buffer, expected[key], rtol=2.0**-7, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["output", "kv"])
def test_inductor_int8_equals_eager_within_a_step_of_the_format(keep):
    case = make_dit(layers=2)
    eager, compiled = (
        dqar_fx.transform(
            case.model, Schedule.from_actions("SRSR"), cache="int8", keep=keep, compile=unit
        )
        for unit in (None, "regional")
    )
    for step in range(4):
        expected = eager(**case.inputs(step)).sample
        result = compiled(**case.inputs(step)).sample
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        kept, given = (
            next(iter(denoiser.program.streams.values())).slots.buffers
            for denoiser in (compiled, eager)
        )
        check_kept(kept, given)
        for key, buffer in kept.items():
            buffer.copy_(given[key])  # the next step is compared on equal integers
    with torch.compiler.set_stance("fail_on_recompile"):
        trajectory(compiled, case, seed=1, steps=4)


def test_compile_later_as_diffusers_users_call_it():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, Schedule.interval(3, 2))
    expected = trajectory(denoiser, case, steps=3)
    denoiser.compile(backend="eager", fullgraph=True)
    denoiser.reset()
    for a, b in zip(trajectory(denoiser, case, steps=3), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] > 0
    denoiser.compile_repeated_blocks(backend="eager")
    trajectory(denoiser, case, steps=3)


def test_another_schedule_compiles_nothing_again():
    case = make_dit(layers=3)
    denoiser = dqar_fx.transform(
        case.model, Schedule.interval(6, 2, warmup=2), compile={"backend": "eager"}
    )
    trajectory(denoiser, case, steps=6)
    graphs = counters["stats"]["unique_graphs"]
    other = denoiser.with_schedule(Schedule.linear(6, warmup=2))
    with torch.compiler.set_stance("fail_on_recompile"):
        trajectory(other, case, steps=6)
    assert counters["stats"]["unique_graphs"] == graphs
    assert other.table != denoiser.table


def test_replayed_cuda_graphs_own_nothing_that_outlives_a_step():
    """On a machine without CUDA: what is handed on is a copy of what a region returned."""
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.interval(3, 2),
        compile={"backend": "eager", "options": {"triton.cudagraphs": True}},
    )
    assert denoiser.prepare(**case.inputs(0)).lowering.backend.replays
    plain = dqar_fx.transform(case.model, Schedule.interval(3, 2))
    results, expected = trajectory(denoiser, case, steps=3), trajectory(plain, case, steps=3)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
