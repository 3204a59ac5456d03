"""Published geometries: their parameters, and what is inspected of them on the meta device."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from dqar_fx.command_line.cards import read_cards
from dqar_fx.command_line.models import build_model
from tests.helpers.config_files import expect_error, run
from tests.helpers.slow_cases import slow_but

WIDTH = 2  # bytes of a bfloat16
ATTENTIONS = {
    "dit-xl-2": {"self": 28},
    "flux.1-dev": {"joint": 19, "self": 38},
    "pixart-alpha": {"self": 28, "cross": 28},
}
"""Sites by kind; of an attention of one stream that two were joined into, self."""
KEPT_VALUES = {
    "dit-xl-2": 28 * 256 * 1152,
    "flux.1-dev": 57 * (4096 + 512) * 3072,
    "pixart-alpha": 2 * 28 * 4096 * 1152,
}
"""Blocks, tokens and width of what all attentions keep."""
SAME_CLASS = {"sd3.5-medium", "wan2.1-14b", "wan2.2-5b", "wan2.2-a14b"}
"""Cards whose class another card has, too."""
GIGA_MACS = {"dit-xl-2": 118.4}
"""Multiply-accumulates of one step, as they are published."""


@pytest.mark.parametrize("name", slow_but("dit-xl-2", "flux.1-dev", of=read_cards()))
def test_card_has_the_parameters_that_are_published(name):
    model = build_model(name, torch.bfloat16)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found / 1e9 == pytest.approx(read_cards()[name].billions, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in read_cards() if name not in SAME_CLASS])
def test_card_is_inspected(name, capsys):
    options = ("--dtype", "bfloat16", "--batch", 1, "--schedule", "SRSR", "--json")
    code, out, err = run(capsys, "inspect", name, *options)
    assert code == 0, err
    content = json.loads(out)
    sites = content["explanation"]["sites"]
    kept = [kept for site in sites for kept in site["kept"]]
    cache = content["report"]["cache_bytes"]
    assert cache == WIDTH * sum(torch.Size(each["shape"]).numel() for each in kept)
    if name in ATTENTIONS:
        assert Counter(site["kind"] for site in sites) == ATTENTIONS[name]
        assert cache == WIDTH * KEPT_VALUES[name]
    if name in GIGA_MACS:
        macs = content["report"]["untransformed_macs"] / 4 / 1e9
        assert macs == pytest.approx(GIGA_MACS[name], rel=0.01)


def test_card_has_no_weights(capsys):
    error = expect_error(capsys, "inspect", "flux.1-dev", "--weights")
    assert "flux.1-dev is a card, which has no weights" in error


def test_unknown_name_lists_the_cards(capsys):
    error = expect_error(capsys, "inspect", "flux.9")
    assert "flux.9 is no model" in error
    assert "sd3.5-large" in error
