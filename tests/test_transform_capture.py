"""The tiers of a capture: which is taken, what is said of it, and what it does not have."""

from __future__ import annotations

import json
import re

import pytest
import torch

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.block_models import Blocks, call_copies, inputs_at
from tests.helpers.models import make_dit

PLAN = Schedule.interval(4, 2)


@pytest.fixture
def model():
    return Blocks(call_copies).eval()


def test_auto_falls_back_to_blocks_and_says_why_once(model):
    denoiser = dqar_fx.transform(model, PLAN)
    with pytest.warns(UserWarning, match=r"one by one, since Blocks cannot .*_models\.py"):
        denoiser(**inputs_at(0))
    denoiser(**inputs_at(0, batch=3))  # another capture, and no warning
    found = denoiser.explain()
    assert found.tier == "blocks"
    assert re.search(r"it fails in Blocks \(block_models\.py:\d+, forward\)", found.why_tier)
    assert str(found).startswith("tier: its blocks one by one, ")
    assert found.why_tier in str(found)
    assert json.loads(found.to_json())["why_tier"] == found.why_tier


def test_auto_takes_the_whole_where_it_can():
    case = make_dit(layers=1)
    denoiser = dqar_fx.transform(case.model, PLAN, example_inputs=case.inputs(0))
    assert (denoiser.explain().tier, denoiser.explain().why_tier) == ("graph", "")
    assert str(denoiser.explain()).startswith("tier: one graph of the whole denoiser\n")


def test_graph_raises_where_the_whole_cannot_be(model):
    denoiser = dqar_fx.transform(model, PLAN, capture="graph")
    with pytest.raises(dqar_fx.CaptureError, match="cannot be captured as one graph"):
        denoiser(**inputs_at(0))


def test_capture_unknown_word_lists_the_known(model):
    with pytest.raises(dqar_fx.OptionError, match="'block' is unknown; known are auto, graph"):
        dqar_fx.transform(model, PLAN, capture="block")


REFUSED = [
    ({"compile": "whole"}, dqar_fx.OptionError, "compile='whole' needs one graph"),
    ({"compile": {"dynamic": True}}, dqar_fx.OptionError, "'dynamic': True} needs one graph"),
    ({"conditioning": "trajectory"}, dqar_fx.OptionError, "conditioning='trajectory'"),
    ({"release": "host"}, dqar_fx.OptionError, "release= asks for too"),
    ({"sites": "span"}, dqar_fx.SiteError, "a span of blocks needs one graph"),
    ({"sites": ["self", "blocks.0:2"]}, dqar_fx.SiteError, "sites='blocks.0:2'"),
]


@pytest.mark.parametrize(("given", "error", "said"), REFUSED)
def test_what_needs_the_whole_is_refused_at_the_call(model, given, error, said):
    with pytest.raises(error, match=re.escape(said)) as raised:
        dqar_fx.transform(model, PLAN, capture="blocks", **given)
    assert str(raised.value).count("capture='blocks'") == 1


@pytest.mark.parametrize("given", [{"compile": "whole"}, {"sites": "span"}])
def test_what_needs_the_whole_is_refused_when_auto_falls_back(model, given):
    denoiser = dqar_fx.transform(model, PLAN, **given)
    said = "capture='auto' fell back to blocks, since Blocks cannot"
    with (
        pytest.warns(UserWarning, match="one by one"),
        pytest.raises(dqar_fx.DqarError, match=said),
    ):
        denoiser(**inputs_at(0))


def test_what_needs_the_whole_later_is_refused(model):
    denoiser = dqar_fx.transform(model, PLAN, capture="blocks")
    denoiser(**inputs_at(0))
    with pytest.raises(dqar_fx.OptionError, match="drop_conditioning needs one graph"):
        denoiser.drop_conditioning(torch.arange(4.0), x=[1])
    with pytest.raises(dqar_fx.OptionError, match=r"measuring .* needs one graph"):
        denoiser.report()
    assert denoiser.report(device="A100").macs > 0
    assert denoiser.memory.slots > 0


def test_a_model_without_blocks_keeps_the_first_reason():
    class Branching(torch.nn.Module):
        def forward(self, x, timestep):
            return x if x.sum() > 0 else -x

    denoiser = dqar_fx.transform(Branching(), PLAN)
    with pytest.raises(
        dqar_fx.CaptureError, match=r"Branching cannot(.|\n)*no block that can"
    ):
        denoiser(torch.ones(2, 3), torch.ones(2))


def test_a_forward_that_fails_by_itself_says_so(model):
    denoiser = dqar_fx.transform(model, PLAN, capture="blocks")
    with pytest.raises(dqar_fx.CaptureError, match="its own forward fails"):
        denoiser(torch.ones(2, 5, 3), torch.ones(2))
