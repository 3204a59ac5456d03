"""compile={"prepack": True}: packed weights, what they take, and that they are never stale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Guidance, OptionError, Schedule
from dqar_fx.passes.support.products import FEW_ROWS
from dqar_fx.program.packed_weights import PackedWeight, PackedWeights
from dqar_fx.program.packing_plan import packed_bytes, weights_to_pack
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

CLOSE = 1e-5
STEPS = 4
SCHEDULE = Schedule.interval(STEPS, 2, warmup=1)
pytestmark = pytest.mark.usefixtures("fresh_counters")


def packed(case, schedule=SCHEDULE, backend="eager", **options):
    compile = {"backend": backend, "prepack": True, **options.pop("compile", {})}
    return dqar_fx.transform(case.model, schedule, compile=compile, **options)


def trajectory(denoiser, case, seed=0):
    return torch.cat([denoiser(**case.inputs(s, seed)).sample for s in range(STEPS)])


def check_close(found, expected):
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


# ---- what is computed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit"),
    slow_but(
        ("dit", "regional"), of=[*((name, "regional") for name in MAKERS), ("dit", "whole")]
    ),
)
def test_prepack_equals_eager_within_rounding(name, unit):
    case = MAKERS[name]()
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE), case)
    denoiser = packed(case, compile={"unit": unit})
    check_close(trajectory(denoiser, case), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == len(denoiser.program.variants)
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        trajectory(denoiser, case, seed=1)
    assert denoiser.memory.packed == denoiser._programs.packed_weights.nbytes > 0


@pytest.mark.slow
def test_prepack_lowered_by_inductor():
    case = make_dit(layers=2)
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE), case)
    denoiser = packed(case, backend="inductor")
    check_close(trajectory(denoiser, case), expected)
    graphs = counters["stats"]["unique_graphs"]
    trajectory(denoiser, case, seed=1)
    assert counters["stats"]["unique_graphs"] == graphs == len(denoiser.program.variants)


def test_prepack_compiles_as_many_graphs_as_without():
    case, found = make_dit(layers=4), []
    for prepack in (False, True):
        torch._dynamo.reset()
        counters.clear()
        trajectory(packed(case, compile={"prepack": prepack}), case)
        found.append(counters["stats"]["unique_graphs"])
    assert found[0] == found[1]


def test_prepack_in_another_schedule_shares_the_copies():
    case = make_dit(layers=2)
    denoiser = packed(case)
    trajectory(denoiser, case)
    twin = denoiser.with_schedule(Schedule.interval(STEPS, 3))
    size = len(denoiser._programs.packed_weights)
    trajectory(twin, case)
    assert twin._programs.packed_weights is denoiser._programs.packed_weights
    assert len(twin._programs.packed_weights) == size


@pytest.mark.slow
def test_prepack_under_guidance_and_with_keys_and_values():
    case = make_dit(layers=2)
    guidance = Guidance(unconditional=Schedule.interval(STEPS, 3), batched="conditional_first")
    options = {"guidance": guidance, "keep": "kv"}
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE, **options), case)
    denoiser = packed(case, **options)
    check_close(trajectory(denoiser, case), expected)
    assert denoiser.memory.packed == denoiser._programs.packed_weights.nbytes > 0


@pytest.mark.slow
def test_prepack_tied_weights_of_a_block_compile_no_graph_of_their_own():
    case = make_dit(layers=3)
    attention = case.model.transformer_blocks[1].attn1
    with torch.no_grad():
        attention.to_k.weight.copy_(attention.to_v.weight)  # held once
    denoiser = packed(case)
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE), case)
    check_close(trajectory(denoiser, case), expected)
    assert counters["stats"]["unique_graphs"] == len(denoiser.program.variants)
    assert denoiser.memory.packed == denoiser._programs.packed_weights.nbytes


@pytest.mark.slow
def test_prepack_two_signatures_share_the_copies():
    case, more = make_dit(layers=2), make_dit(layers=2, batch=3)
    denoiser = packed(case)
    trajectory(denoiser, case)
    size = denoiser._programs.packed_weights.nbytes
    trajectory(denoiser, more)
    assert denoiser._programs.packed_weights.nbytes == size == denoiser.memory.packed


def test_prepack_report_charges_no_step_with_looking_at_weights(monkeypatch):
    case = make_dit(layers=2)
    denoiser = packed(case, example_inputs=case.inputs(0))
    monkeypatch.setattr(
        PackedWeights, "refresh", lambda self: pytest.fail("once per trajectory")
    )
    profile = dqar_fx.measure_profile(denoiser, by="regions", budget_s=0.01)
    assert denoiser.report(device=profile).how == "measured by regions"


# ---- what is packed ----------------------------------------------------------------------


@pytest.mark.slow
def test_prepack_leaves_conditioning_where_it_is():
    """It may be released, and is evaluated once per prompt: captions of 21 rows here."""
    case = MAKERS["pixart"](batch=3)
    denoiser = packed(case, release="disk")
    denoiser.attach_timesteps(torch.tensor([case.top - case.fall * s for s in range(STEPS)]))
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE), case)
    check_close(trajectory(denoiser, case), expected)
    assert case.given["encoder_hidden_states"].shape[:2].numel() > FEW_ROWS[-1]
    program = denoiser.program
    found = [w.data_ptr() for w in weights_to_pack(program, program.table.rows).values()]
    model = denoiser.model
    assert model.transformer_blocks[0].attn1.to_q.weight.data_ptr() in found
    assert model.caption_projection.linear_1.weight.data_ptr() not in found
    assert denoiser.memory.packed == denoiser._programs.packed_weights.nbytes
    assert denoiser.released_bytes > 0


def test_prepack_memory_says_so():
    case = make_dit(layers=2)
    denoiser = packed(case, example_inputs=case.inputs(0))
    plan = denoiser.memory
    assert plan.packed > 0
    assert len(denoiser._programs.packed_weights) == 0, "planned before anything is packed"
    assert "packed copies of weights" in str(plan)
    assert plan.held == plan.kept + plan.slots + plan.conditioning + plan.packed
    assert type(plan).from_json(plan.to_json()) == plan


def test_prepack_is_explained():
    case = make_dit(layers=2)
    denoiser = packed(case)
    trajectory(denoiser, case)
    passes = [r for r in denoiser.explain().reports if r.name == "prepack_linears"]
    assert sum(report.rewrites for report in passes) > 0


# ---- never stale -------------------------------------------------------------------------

ON_A_GRID = 256
"""Weights are multiples of its inverse, so that their sums are exact in any order."""
WRITES = {
    "in_place": lambda weight: weight.mul_(1.5),
    "by_data": lambda weight: weight.data.add_(0.1),
    "constant": lambda weight: weight.data.fill_(0.25),
    "rows": lambda weight: weight.data.copy_(weight.data.flip(0)),
    "columns": lambda weight: weight.data.copy_(weight.data.flip(1)),
    "signs": lambda weight: weight.data[0, :2].neg_(),
    "one": lambda weight: weight.data[0, 0].add_(1),
}


@pytest.mark.parametrize("how", slow_but("signs", of=WRITES))
@torch.no_grad()
def test_prepack_sees_weights_that_were_written(how):
    case = make_dit(layers=2)
    weight = case.model.transformer_blocks[1].ff.net[2].weight
    weight.copy_((weight * ON_A_GRID).round() / ON_A_GRID)
    denoiser = packed(case)
    before = trajectory(denoiser, case)
    WRITES[how](weight)
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE), case)
    found = trajectory(denoiser, case)
    check_close(found, expected)
    assert (found - before).abs().max() > 10 * CLOSE * before.abs().max()


@torch.no_grad()
def test_prepack_sees_one_constant_after_another():
    case = make_dit(layers=2)
    weight = case.model.transformer_blocks[1].ff.net[2].weight
    weight.data.zero_()
    denoiser = packed(case)
    trajectory(denoiser, case)
    weight.data.fill_(0.25)
    expected = trajectory(dqar_fx.transform(case.model, SCHEDULE), case)
    check_close(trajectory(denoiser, case), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_prepack_does_not_depend_on_the_default_dtype(dtype):
    weight, before = torch.randn(33, 70), torch.get_default_dtype()
    packed_bytes.cache_clear()
    try:
        torch.set_default_dtype(dtype)
        one = PackedWeight.of(weight)
        assert packed_bytes((33, 70)) == one.nbytes
        one.refresh()
    finally:
        torch.set_default_dtype(before)
        packed_bytes.cache_clear()


def test_prepack_copies_and_conversions_pack_anew():
    case = make_dit(layers=2)
    denoiser = packed(case)
    expected = trajectory(denoiser, case)
    twin = copy.deepcopy(denoiser)
    assert len(twin._programs.packed_weights) == 0
    check_close(trajectory(twin, case), expected)
    denoiser.to(torch.float64).to(torch.float32)
    assert len(denoiser._programs.packed_weights) == 0
    check_close(trajectory(denoiser, case), expected)


# ---- refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compile", "said"),
    [
        ({"unit": None, "prepack": True}, "bit for bit the original's"),
        ({"prepack": True, "dynamic": True}, "takes weights as they are"),
        ({"prepack": "yes"}, "expected True, so that linears"),
        ({"prepack": None}, "expected True, so that linears"),
    ],
)
def test_prepack_refuses_what_excludes_it(compile, said):
    with pytest.raises(OptionError, match=said):
        dqar_fx.transform(make_dit(layers=1).model, SCHEDULE, compile=compile)


@pytest.mark.parametrize(
    ("move", "found"),
    [
        (lambda model: model.to(torch.bfloat16), "torch.bfloat16 on cpu with 72 rows"),
        (lambda model: model.to("meta"), "torch.float32 on meta with 72 rows"),
    ],
)
def test_prepack_of_nothing_is_an_error(move, found):
    case = make_dit(layers=1)
    move(case.model)
    case.dtype = next(case.model.parameters()).dtype
    device = next(case.model.parameters()).device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in case.inputs(0).items()
    }
    with pytest.raises(OptionError, match=f"no linear of the step .*{found}"):
        packed(case, example_inputs=inputs)
