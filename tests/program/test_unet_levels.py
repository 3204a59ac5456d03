"""Deep levels of UNets reused: against hooks on the model; what a step leaves out."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Action, Schedule, SiteError
from tests.helpers.block_oracle import WholeOracle
from tests.helpers.slow_cases import slow_but
from tests.helpers.unet_models import UNET_MAKERS, make_plain

STEPS = 5
CONVOLUTION = torch.ops.aten.conv2d.default


def level(case, number):
    """Path of the span below level ``number``, and of the last module in it."""
    stop = case.levels - number
    return f"down_blocks.{number}:up_blocks.{stop}", f"up_blocks.{stop - 1}"


def compare(case, denoiser, last, *, atol=0.0):
    """Each step against the oracle; bit for bit where there is no bound."""
    denoiser.prepare(**case.inputs(0))
    (actions,) = denoiser.table.actions.T
    oracle = WholeOracle(case.model, last, actions)
    for step in range(STEPS):
        found = denoiser(**case.inputs(step)).sample
        expected = oracle(step, **case.inputs(step))
        assert (found - expected).abs().max() <= atol, f"step {step}"
    assert (actions == Action.REUSE).sum() == STEPS - 2


@pytest.mark.parametrize(
    ("name", "number"),
    slow_but(
        ("plain", 1),
        ("sdxl", 2),
        of=[(name, 1) for name in UNET_MAKERS] + [("sd15", 2), ("sd15", 3), ("sdxl", 2)],
    ),
)
def test_levels_reused_equal_hooks_bit_for_bit(name, number):
    case = UNET_MAKERS[name]()
    path, last = level(case, number)
    compare(case, dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites=path), last)


@pytest.fixture(scope="module")
def plain():
    case = make_plain()
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites="span")
    denoiser.prepare(**case.inputs(0))
    return case, denoiser


def test_levels_span_means_what_is_below_the_outermost_one(plain):
    _, denoiser = plain
    assert denoiser.table.sites == ("down_blocks.1:up_blocks.2",)
    (site,) = denoiser.explain().sites
    assert (site.variant, [list(spec.shape) for spec in site.kept]) == (
        "whole",
        [[2, 16, 8, 8]],
    )
    others = [site.path for site in denoiser.explain().left_out]
    assert "down_blocks.2:up_blocks.1" in others
    assert denoiser.cache_bytes == 2 * 16 * 8 * 8 * 4


def test_levels_reused_leave_the_outermost_one_alone_in_the_step(plain):
    case, denoiser = plain
    outer = ("conv_in", "conv_out", "down_blocks.0.resnets", "up_blocks.2")
    nodes = denoiser.row_graph(1).graph.find_nodes(op="call_function", target=CONVOLUTION)
    makers = [list(node.meta["nn_module_stack"].values())[-1][0] for node in nodes]
    assert makers
    assert all(maker.startswith(outer) for maker in makers)
    own = [
        name
        for name, module in case.model.named_modules()
        if isinstance(module, torch.nn.Conv2d) and name.startswith(outer)
    ]
    assert sorted(makers) == sorted(own)
    computed, reused = denoiser.report().rows
    assert reused.cost.macs < computed.cost.macs


def test_levels_end_inside_of_a_level_where_the_path_says_so(plain):
    case, denoiser = plain
    path = "down_blocks.0.downsamplers.0:up_blocks.2.resnets.1"
    again = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites=path)
    compare(case, again, "up_blocks.2.resnets.0")
    assert again.cache_bytes < denoiser.cache_bytes


def test_levels_quantised_and_forecast_within_bounds(plain):
    case, denoiser = plain
    small = dqar_fx.transform(
        case.model, Schedule.interval(STEPS, 3), sites="span", cache="int8"
    )
    compare(case, small, "up_blocks.1", atol=0.1)
    assert small.cache_bytes < 0.5 * denoiser.cache_bytes
    schedule = Schedule.interval(STEPS, 3, warmup=2).forecast(1)
    ahead = dqar_fx.transform(case.model, schedule, sites="span")
    kept = []
    for step in range(4):
        inputs = case.inputs(step)
        found = ahead(**inputs).sample
        action = ahead.table.actions[step, 0]

        def replace(_module, _args, output, action=action, kept=kept, step=step):
            if action == Action.STORE:
                kept.insert(0, (step, output))
            if action == Action.FORECAST:
                (new, a), (old, b) = kept[:2]
                return a + (a - b) * ((step - new) / (new - old))
            return output

        handle = case.model.up_blocks[1].register_forward_hook(replace)
        with torch.no_grad():
            torch.testing.assert_close(found, case.model(**inputs).sample)
        handle.remove()
    assert (ahead.table.actions[:4] == Action.FORECAST).any()


def test_levels_compiled_by_region_nothing_recompiles(plain):
    torch._dynamo.reset()
    counters.clear()
    case, _ = plain
    options = {"unit": "regional", "backend": "eager"}
    denoiser = dqar_fx.transform(
        case.model, Schedule.interval(STEPS, 3), sites="span", compile=options
    )
    compare(case, denoiser, "up_blocks.1", atol=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(STEPS):
            denoiser(**case.inputs(step))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("sites", "reasons"),
    [
        ("down_blocks.7:up_blocks.2", ["no module down_blocks.7 computes anything here"]),
        ("up_blocks.2:down_blocks.1", ["down_blocks.1 is called before up_blocks.2"]),
        (
            "down_blocks.1:up_blocks.1",
            ["a skip connection leaves it, from down_blocks.1", "to up_blocks.1", ".py:"],
        ),
        (
            "down_blocks.2:up_blocks.2",
            ["a skip connection enters it, from down_blocks.1", "to up_blocks.1"],
        ),
    ],
)
def test_levels_wrong_ends_raise_with_the_reason_and_what_there_is(plain, sites, reasons):
    case, _ = plain
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites=sites)
    with pytest.raises(SiteError) as raised:
        denoiser.prepare(**case.inputs(0))
    text = str(raised.value)
    assert f"sites={sites!r} selects no site" in text
    assert "down_blocks.1:up_blocks.2  span, whole" in text
    assert [reason for reason in reasons if reason not in text] == []


def test_levels_cover_the_attention_inside_and_no_other(plain):
    case, _ = plain
    sites = ["span", "attention"]
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites=sites)
    denoiser.prepare(**case.inputs(0))
    table = denoiser.table
    assert len(table.sites) == 1 + 7  # of two levels and the middle
    assert set(table.actions[1]) == {Action.REUSE, Action.COVERED}
    attention = torch.ops.aten.scaled_dot_product_attention.default
    graph = denoiser.row_graph(1).graph
    assert not graph.find_nodes(op="call_function", target=attention)
