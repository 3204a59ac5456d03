"""Which settings of which rivals take part."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.pareto.contenders import (
    BLOCKS,
    CACHE_DIT,
    COMPILED,
    DIFFUSERS,
    EAGER,
    Contender,
)
from benchmarks.pareto.rivals import of_diffusers as hooks
from benchmarks.pareto.rivals.of_cache_dit import CacheDit
from benchmarks.pareto.rivals.of_diffusers import Hooks

SITES = [r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]
"""Patterns of TaylorSeer for a DiT; the hook's default ones match none of its modules."""
EVERYWHERE = (-1, 1001)
"""A range of timesteps with all in it."""


def list_rivals(steps: int, *, compiled: bool) -> Iterator[Contender]:
    """All settings of all rivals, in each mode.

    Args:
        steps: Denoising steps.
        compiled: Whether there is a compiler.
    """
    for tool, setting, recipe in list_hooks():
        modes = (EAGER, COMPILED) if compiled and not recipe.stock else (EAGER,)
        for mode in modes:
            name = f"{tool} {setting}"
            yield Contender(name, DIFFUSERS, steps, recipe, mode, tool)
    for setting, cached in list_cache_dit():
        for mode in (EAGER, COMPILED, BLOCKS) if compiled else (EAGER,):
            name = f"cache-dit {setting}"
            yield Contender(name, CACHE_DIT, steps, cached, mode, "cache-dit")


def list_hooks() -> Iterator[tuple[str, str, Hooks]]:
    """Tool, setting and recipe of what diffusers has."""
    yield from list_attention_caches()
    yield from list_taylorseer()
    for threshold in (0.02, 0.03, 0.05):
        values = {"threshold": threshold}
        made = hooks.cache_by_first_block(**values)
        yield "FirstBlockCache", f"{threshold:g}", Hooks(made, values)
    stock = Hooks(hooks.cache_by_first_block(0.05), {"threshold": 0.05}, stock=True)
    yield "FirstBlockCache", "in the stock pipeline", stock
    for threshold, max_skip in ((0.06, 1), (0.06, 3), (0.24, 5)):
        values = {"threshold": threshold, "max_skip_steps": max_skip}
        made = hooks.skip_by_magnitude(**values)
        yield "MagCache", f"{threshold:g}, at most {max_skip}", Hooks(made, values)
    for threshold, most in ((0.1, 2), (0.25, 2), (0.25, 3), (0.4, 3)):
        values = {"threshold": threshold, "max_consecutive_cached": most}
        made = hooks.gate_by_spectrum(**values)
        yield "SeaCache", f"{threshold:g}, at most {most}", Hooks(made, values)
    made = hooks.gate_by_spectrum(adapted=False)
    yield "SeaCache", "in the stock pipeline", Hooks(made, {}, stock=True)


def list_attention_caches() -> Iterator[tuple[str, str, Hooks]]:
    """Pyramid Attention Broadcast and FasterCache."""
    for skip, window in ((2, (100, 800)), (3, EVERYWHERE)):
        values: dict[str, Any] = {
            "spatial_attention_block_skip_range": skip,
            "spatial_attention_timestep_skip_range": window,
        }
        made = hooks.broadcast_attention(**values)
        yield "PAB", f"range {skip}, timesteps {show_window(window)}", Hooks(made, values)
    batched = {"_unconditional_conditional_input_kwargs_identifiers": hooks.BATCHED}
    for skip, window in ((5, (-1, 641)), (5, (-1, 781))):
        values = {
            "unconditional_batch_skip_range": skip,
            "unconditional_batch_timestep_skip_range": window,
        }
        made = hooks.cache_faster(attention_weight_callback=lambda _: 0.3, **values, **batched)
        yield "FasterCache", f"to timestep {window[1]}", Hooks(made, values, swapped=True)
    yield "FasterCache", "defaults", Hooks(hooks.cache_faster(), {}, stock=True)


def list_taylorseer() -> Iterator[tuple[str, str, Hooks]]:
    """TaylorSeer of attention and feed-forward, and of the last layer alone."""
    exact = {"taylor_factors_dtype": torch.float32}
    for every, order in ((3, 1), (3, 2), (4, 1), (4, 2)):
        numbers = {"cache_interval": every, "max_order": order}
        made = hooks.forecast_modules(**numbers, **exact, cache_identifiers=SITES)
        yield "TaylorSeer", f"N={every} O={order}", Hooks(made, {**numbers, "kept": "sites"})
    for every, order in ((2, 1), (3, 1), (3, 2)):
        numbers = {"cache_interval": every, "max_order": order}
        made = hooks.forecast_output(**numbers, **exact)
        setting = f"lite N={every} O={order}"
        yield "TaylorSeer", setting, Hooks(made, {**numbers, "kept": "output"})
    yield "TaylorSeer", "defaults", Hooks(hooks.forecast_modules(), {}, stock=True)
    made = hooks.forecast_modules(use_lite_mode=True)
    yield "TaylorSeer", "lite, own patterns", Hooks(made, {"use_lite_mode": True})


def show_window(window: tuple[int, int]) -> str:
    """A range of timesteps in words."""
    return "all" if window == EVERYWHERE else f"{window[0]}-{window[1]}"


def list_cache_dit() -> Iterator[tuple[str, CacheDit]]:
    """Setting and recipe of what cache-dit has."""
    yield "defaults", CacheDit()
    one = {"Fn_compute_blocks": 1}
    for order in (0, 1):
        seer = f" + TaylorSeer O={order}" if order else ""
        for threshold in (0.04, 0.08):
            config = {**one, "residual_diff_threshold": threshold}
            yield f"F1B0 {threshold:g}{seer}", CacheDit(config, order)
    for policy in ("medium", "fast", "ultra"):
        yield f"{policy} mask + TaylorSeer O=1", CacheDit(one, 1, policy)
    for every, order in ((3, 1), (3, 2), (4, 1)):
        setting = f"mask of every {every} + TaylorSeer O={order}"
        yield setting, CacheDit(one, order, every)
