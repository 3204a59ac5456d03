"""What `transform` refuses, and what it says; which sites it chooses."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import Attention, Optional, make_dit, make_pixart


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=2)


def test_transform_zero_sites_is_an_error_with_near_misses(case):
    class Mlp(nn.Module):
        def forward(self, x, timestep):
            return x.softmax(-1) + timestep.reshape(-1, 1)

    with pytest.raises(dqar_fx.SiteError, match=r"no attention was found(.|\n)*softmax"):
        dqar_fx.transform(
            Mlp(),
            Schedule.compute_all(1),
            example_inputs={"x": torch.randn(2, 3), "timestep": torch.zeros(2)},
        )


def test_transform_pattern_that_selects_nothing_lists_the_sites(case):
    with pytest.raises(dqar_fx.SiteError, match=r"transformer_blocks\.1\.attn1"):
        dqar_fx.transform(
            case.model,
            Schedule.compute_all(1),
            sites="blocks.*",
            example_inputs=case.inputs(0),
        )


def test_transform_of_chosen_sites_leaves_the_others_computed():
    case = make_pixart()
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SR"), sites="cross")
    actions = [[0, 1] * 3, [0, 2] * 3]
    oracle = Oracle(case.model)
    for step, row in enumerate(actions):
        inputs = case.inputs(step)
        assert torch.equal(denoiser(**inputs).sample, oracle(row, **inputs))
    assert {site.kind for site in denoiser.explain().sites} == {"cross"}
    left_out = Counter(site.kind for site in denoiser.explain().left_out)
    assert left_out == {"self": 3, "feed_forward": 3}


def test_transform_mask_of_the_wrong_size_names_both(case):
    with pytest.raises(dqar_fx.ScheduleError, match="has 3 sites but the model has 2"):
        dqar_fx.transform(
            case.model,
            Schedule.from_actions(["SR", "SR", "SR"]),
            example_inputs=case.inputs(0),
        )


def test_transform_unknown_words_list_the_known(case):
    formats = "same, fp16, bf16, int8, int8-per-channel, fp8"
    for unknown in ("int3", 8, None, torch.int8):
        with pytest.raises(dqar_fx.OptionError, match=rf"cache=.* known are {formats}"):
            dqar_fx.transform(case.model, Schedule.compute_all(1), cache=unknown)
    for unknown in ("keys", None, True):
        with pytest.raises(dqar_fx.OptionError, match=r"keep=.* known are output, kv"):
            dqar_fx.transform(case.model, Schedule.compute_all(1), keep=unknown)
    with pytest.raises(dqar_fx.OptionError, match="regional"):
        dqar_fx.transform(case.model, Schedule.compute_all(1), compile="partial")
    with pytest.raises(dqar_fx.OptionError, match="expected None"):
        dqar_fx.transform(case.model, Schedule.compute_all(1), compile=3)


def test_transform_model_that_cannot_be_captured_says_why():
    class Branching(nn.Module):
        def forward(self, x, timestep):
            return x if x.sum() > 0 else -x

    with pytest.raises(dqar_fx.CaptureError, match=r"Branching cannot .* x=float32\[2, 3\]"):
        dqar_fx.transform(
            Branching(),
            Schedule.compute_all(1),
            example_inputs={"x": torch.randn(2, 3), "timestep": torch.zeros(2)},
        )


def test_transform_of_what_is_no_model_or_schedule_says_so(case):
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(1))
    with pytest.raises(dqar_fx.CaptureError, match=r"expected an nn\.Module"):
        dqar_fx.transform(None, Schedule.compute_all(1))
    with pytest.raises(dqar_fx.CaptureError, match="with_schedule"):
        dqar_fx.transform(denoiser, Schedule.compute_all(1))
    with pytest.raises(dqar_fx.ScheduleError, match="from_actions"):
        dqar_fx.transform(case.model, "SR")
    with pytest.raises(dqar_fx.SiteError, match="expected a kind"):
        dqar_fx.transform(case.model, Schedule.compute_all(1), sites=[])


def test_transform_model_that_writes_to_its_buffers_is_refused():
    class Counting(Optional):
        def forward(self, x, timestep):
            self.calls.add_(1)
            return self.attention(x) * self.calls + timestep.reshape(-1, 1, 1)

    inputs = {"x": torch.randn(2, 5, 16), "timestep": torch.zeros(2)}
    model = Counting().eval()
    with pytest.raises(dqar_fx.CaptureError, match="writes to its buffers"):
        dqar_fx.transform(model, Schedule.compute_all(1), example_inputs=inputs)
    assert model.calls == 0


def test_transform_attention_of_the_text_alone_is_a_near_miss_with_its_reason():
    class Refined(nn.Module):
        def __init__(self):
            super().__init__()
            self.refiner, self.attention = Attention(16), Attention(16)

        def forward(self, x, timestep, text):
            return self.attention(x + self.refiner(text)) * timestep.reshape(-1, 1, 1)

    inputs = {
        "x": torch.randn(2, 5, 16),
        "timestep": torch.zeros(2),
        "text": torch.randn(2, 5, 16),
    }
    denoiser = dqar_fx.transform(
        Refined().eval(), Schedule.compute_all(1), example_inputs=inputs
    )
    (miss,) = denoiser.explain().near_misses
    assert "does not depend on the latent" in str(miss)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sites": 3}, "sites=3"),
        (
            {"example_inputs": [1]},
            "expected a dict of keyword arguments of one call, found list",
        ),
        ({"example_inputs": {"foo": 1}}, "Found foo; expected arguments of hidden_states"),
        ({"compile": {"unit": "eager"}}, "the 'unit' of compile='eager' is unknown"),
    ],
)
def test_transform_argument_of_the_wrong_kind_is_refused_at_the_call(given, said):
    model = make_dit(layers=1).model
    with pytest.raises(dqar_fx.DqarError, match=re.escape(said)):
        dqar_fx.transform(model, Schedule.interval(4, 2), **given)
