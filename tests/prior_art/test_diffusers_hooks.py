"""Schedules of other systems against diffusers' own hooks, run on a small DiT."""

import numpy as np
import pytest
import torch
from diffusers import MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, apply_mag_cache, nearest_interp
from diffusers.hooks.taylorseer_cache import apply_taylorseer_cache
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx.prior_art import magcache, taylorseer
from dqar_fx.prior_art.magcache import nearest_ratios
from dqar_fx.schedule.written_out import WrittenActions
from tests.helpers.models import make_dit

SOME = settings(max_examples=15, deadline=None)
LAYERS = [r"transformer_blocks\.\d+\.(attn1|ff)"]


@torch.no_grad()
def run(case, num_steps):
    """Outputs per step, and the steps that computed the last block's attention."""
    counted, outputs = [], []
    inner = case.model.transformer_blocks[-1].attn1.to_q
    handle = inner.register_forward_hook(lambda *_: counted.append(len(outputs)))
    while len(outputs) < num_steps:
        outputs.append(case.model(**case.inputs(len(outputs))).sample)
    handle.remove()
    return outputs, counted


def run_taylorseer(num_steps, every, order, first):
    """By diffusers' TaylorSeer hook."""
    case = make_dit(layers=2)
    config = TaylorSeerCacheConfig(
        cache_interval=every,
        disable_cache_before_step=first,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=LAYERS,
    )
    apply_taylorseer_cache(case.model, config)
    _set_cache_context(case.model, CacheContext("one"))
    return run(case, num_steps)


def run_magcache(num_steps, ratios, threshold=0.06, max_skip=3, retention=0.2):
    """By diffusers' MagCache hook."""
    case = make_dit(layers=2)
    config = MagCacheConfig(threshold, max_skip, retention, num_steps, ratios)
    apply_mag_cache(case.model, config)
    return run(case, num_steps)


def computed(schedule):
    actions = schedule.resolve(["a"]).actions[:, 0]
    return np.flatnonzero(actions <= dqar_fx.Action.STORE).tolist()


@torch.no_grad()
def run_transformed(schedule):
    """Outputs of the package, with the sites of the schedule."""
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, schedule)
    outputs = [denoiser(**case.inputs(step)).sample for step in range(schedule.num_steps)]
    return outputs, denoiser.table


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# ---- TaylorSeer ----------------------------------------------------------------------------


@SOME
@given(st.integers(1, 14), st.integers(1, 5), st.integers(1, 5))
def test_taylorseer_computes_as_diffusers_hook(num_steps, every, first):
    _, expected = run_taylorseer(num_steps, every, 1, first)
    schedule = taylorseer(num_steps, every, first=first, start=first + (every > 1))
    assert computed(schedule) == expected


@pytest.mark.parametrize(("every", "order", "first"), [(3, 1, 3), (3, 2, 2), (4, 3, 1)])
def test_taylorseer_gives_what_diffusers_hook_gives(every, order, first):
    expected, _ = run_taylorseer(14, every, order, first)
    outputs, table = run_transformed(
        taylorseer(14, every, order, first=first, start=first + 1)
    )
    assert table.sites == tuple(
        f"transformer_blocks.{block}.{part}" for block in range(2) for part in ("attn1", "ff")
    )
    assert table.orders.max() == order
    assert_near(outputs, expected)


# ---- MagCache ------------------------------------------------------------------------------


@SOME
@given(
    st.lists(st.integers(90, 105).map(lambda n: n / 100), min_size=2, max_size=15),
    st.integers(2, 15),
    st.sampled_from([0.0, 0.03, 0.06, 0.1, 0.3]),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
)
def test_magcache_computes_as_diffusers_hook(
    ratios, num_steps, threshold, max_skip, retention
):
    limits = {"threshold": threshold, "max_skip": max_skip, "retention": retention}
    _, expected = run_magcache(num_steps, ratios, **limits)
    assert computed(magcache(ratios, num_steps=num_steps, **limits)) == expected


@pytest.mark.parametrize("num_steps", [4, 28, 50])
def test_magcache_of_flux_computes_as_diffusers_hook(num_steps):
    _, expected = run_magcache(num_steps, FLUX_MAG_RATIOS)
    assert computed(magcache(FLUX_MAG_RATIOS, num_steps=num_steps)) == expected


def test_magcache_gives_what_diffusers_hook_gives():
    ratios = [1.0, 0.99, 1.01, 0.98, 0.97, 0.9, 0.99, 0.98, 0.97, 0.9]
    expected, steps = run_magcache(10, ratios)
    schedule = magcache(ratios, num_steps=10)
    outputs, table = run_transformed(schedule)
    assert table.sites == ("transformer_blocks.0:2",)
    assert isinstance(schedule.rule, WrittenActions)
    assert 2 < len(steps) < 10
    assert_near(outputs, expected)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120))
def test_magcache_nearest_ratios_are_those_of_diffusers(length, num_steps):
    curve = np.arange(1, length + 1, dtype=np.float32)
    expected = nearest_interp(torch.from_numpy(curve), num_steps)
    assert nearest_ratios(curve, num_steps).tolist() == expected.tolist()
