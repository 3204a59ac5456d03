"""Noise of forecasts in a run: weights by the format, and a warning if it is amplified."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

import dqar_fx
from dqar_fx import ForecastNoiseWarning, Schedule
from dqar_fx.passes import FORMATS
from dqar_fx.schedule.forecast import damping_for
from tests.helpers.models import make_dit

STEPS = 20
FAR = Schedule.interval(STEPS, 5, warmup=3)
"""Forecasts up to four steps from what is kept."""


@pytest.fixture(scope="module")
def captured():
    """A model, and its denoisers by format, captured once."""
    case, made = make_dit(layers=1), {}

    def find(cache, schedule):
        if cache not in made:
            widest = FAR.forecast(3)
            made[cache] = dqar_fx.transform(case.model, widest, cache=cache)
            made[cache].prepare(**case.inputs(0))
        return made[cache].with_schedule(schedule)

    return case, find


@torch.no_grad()
def run(denoiser, case, move=0.0):
    """A run whose inputs move by that much per step."""
    first, other = case.inputs(0), case.inputs(1)["hidden_states"]
    found = []
    for step in range(STEPS):
        latent = first["hidden_states"] + step * move * other
        with denoiser.cache_context("cond", step_index=step):
            found.append(denoiser(**{**first, "hidden_states": latent}).sample)
    return found


def noises(denoiser, case, move):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(denoiser, case, move)
    return [str(each.message) for each in said if each.category is ForecastNoiseWarning]


# ---- the warning ---------------------------------------------------------------------------


def test_noise_of_int8_at_order_3_and_small_changes_is_warned_of_once(captured):
    case, find = captured
    denoiser = find("int8", FAR.forecast(3, damping=0.0))
    (text,) = noises(denoiser, case, 1e-5)
    assert "cache='int8'" in text
    assert "site 0 (transformer_blocks.0.attn1)" in text
    assert re.search(r"order [23] makes [\d.]+% of", text)
    assert "a rounding error of 0.80% (times" in text
    assert "Take a wider format, cache='fp16'; a lower order, forecast(" in text
    assert re.search(r"or damping, forecast\([23], damping=0.5\)$", text)
    assert noises(denoiser, case, 1e-5) == []


@pytest.mark.parametrize("cache", ["same", "fp16"])
def test_noise_of_wider_formats_is_not_warned_of(captured, cache):
    case, find = captured
    assert noises(find(cache, FAR.forecast(3)), case, 0.02) == []


def test_noise_below_the_change_is_not_warned_of(captured):
    case, find = captured
    assert noises(find("int8", FAR.forecast(3, damping=0.0)), case, 0.3) == []


def test_noise_of_reuse_is_not_warned_of(captured):
    case, find = captured
    assert noises(find("int8", FAR), case, 0.0) == []


# ---- weights -------------------------------------------------------------------------------


def test_forecasts_left_to_the_cache_are_damped_for_eight_bits(captured):
    case, find = captured
    near = Schedule.interval(STEPS, 3, warmup=3)
    denoiser = find("int8", near.forecast(2, damping="cache"))
    table = denoiser.table
    assert table.damping == damping_for(FORMATS["int8"].rounding, STEPS) > 0
    plain = find("int8", near.forecast(2))
    assert np.array_equal(plain.table.actions, table.actions)
    assert plain.table.damping == 0
    damped, other = (run(each, case, 0.05) for each in (denoiser, plain))
    assert not all(torch.equal(a, b) for a, b in zip(damped, other, strict=True))


@pytest.mark.parametrize("cache", ["same", "fp16", "bf16"])
def test_forecasts_of_sixteen_bits_and_more_are_as_without_damping(captured, cache):
    case, find = captured
    schedules = (FAR.forecast(3, damping="cache"), FAR.forecast(3))
    first, second = (run(find(cache, each), case, 0.05) for each in schedules)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_damping_takes_no_graph_of_its_own(captured):
    case, find = captured
    plain = find("same", FAR.forecast(3))
    run(plain, case)
    known = set(plain.program.variants)
    run(find("same", FAR.forecast(3, damping=0.4)), case)
    assert set(plain.program.variants) == known
