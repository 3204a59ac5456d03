"""Which settings of which systems take part, and their decisions as branch tables.

Settings are the defaults, those of the documentation, and a few beside them, where the
defaults are not meant for a model like this one.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import hooks as diffusers

import dqar_fx
from benchmarks.contenders import kinds
from benchmarks.contenders.bench import Bench
from benchmarks.contenders.cache_dit import CacheDit, make_mask
from benchmarks.contenders.contenders import Contender, in_modes
from benchmarks.contenders.hooks import (
    Hooks,
    hand_latents,
    measure_magnitudes,
    tell_magnitudes,
    tell_timestep,
)
from benchmarks.contenders.recipes import Transformed
from dqar_fx import Schedule, prior_art

SITES = [r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]
"""Patterns of TaylorSeer for a DiT; the hook's default ones match none of its modules."""
KEPT: dict[str, dict[str, Any]] = {
    "sites": {"cache_identifiers": SITES},
    # its "lite" mode, whose own patterns find no last layer in a DiT: the output of that layer
    # alone is forecast, and blocks are skipped where it is
    "output": {
        "skip_predict_identifiers": [r"transformer_blocks\.\d+"],
        "cache_identifiers": ["proj_out_2"],
    },
}
EVERYWHERE = (-1, 1001)
"""A range of timesteps with all in it."""
BATCHED = ("hidden_states", "encoder_hidden_states", "timestep", "class_labels")
"""Arguments with both halves of the guidance; FasterCache's default lacks the labels."""
MAX_AGE = 3
"""SmoothCache's lookahead."""


def list_peers(steps: int, *, compiled: bool) -> Iterator[Contender]:
    """All settings of all systems, in each mode.

    Args:
        steps: Denoising steps.
        compiled: Whether there is a compiler.
    """
    modes = (kinds.EAGER, kinds.COMPILED, kinds.BLOCKS) if compiled else (kinds.EAGER,)
    for tool, setting, recipe in list_hooks():
        few = modes[:1] if recipe.stock else modes[:2]
        yield from in_modes(few, f"{tool} {setting}", kinds.DIFFUSERS, steps, recipe, tool)
    for setting, cached in list_cache_dit():
        own = f"cache-dit {setting}", kinds.CACHE_DIT, steps, cached, "cache-dit"
        yield from in_modes(modes, *own)


def list_hooks() -> Iterator[tuple[str, str, Hooks]]:
    """Tool, setting and recipe of what diffusers has."""
    for skip, window in ((2, (100, 800)), (3, EVERYWHERE)):
        shown = "all" if window == EVERYWHERE else f"{window[0]}-{window[1]}"
        yield "PAB", f"range {skip}, timesteps {shown}", broadcast(skip, window)
    faster = partial(diffusers.FasterCacheConfig, tensor_format="BCHW")
    for window in ((-1, 641), (-1, 781)):
        kind = partial(
            faster,
            attention_weight_callback=lambda _: 0.3,
            _unconditional_conditional_input_kwargs_identifiers=BATCHED,
        )
        values: dict[str, Any] = {
            "unconditional_batch_skip_range": 5,
            "unconditional_batch_timestep_skip_range": window,
        }
        made = Hooks(kind, values, tell_timestep, swapped=True)
        yield "FasterCache", f"to timestep {window[1]}", made
    yield "FasterCache", "defaults", Hooks(faster, {}, tell_timestep, stock=True)
    for every, order in ((3, 1), (3, 2), (4, 1), (4, 2)):
        yield "TaylorSeer", f"N={every} O={order}", seer(every, order, "sites")
    for every, order in ((2, 1), (3, 1), (3, 2)):
        yield "TaylorSeer", f"lite N={every} O={order}", seer(every, order, "output")
    config = diffusers.TaylorSeerCacheConfig
    yield "TaylorSeer", "defaults", Hooks(config, {}, stock=True)
    yield "TaylorSeer", "lite, own patterns", Hooks(config, {"use_lite_mode": True})
    first = diffusers.FirstBlockCacheConfig
    for threshold in (0.02, 0.03, 0.05):
        yield "FirstBlockCache", f"{threshold:g}", Hooks(first, {"threshold": threshold})
    stock = Hooks(first, {"threshold": 0.05}, stock=True)
    yield "FirstBlockCache", "in the stock pipeline", stock
    for threshold, max_skip in ((0.06, 1), (0.06, 3), (0.24, 5)):
        values = {"threshold": threshold, "max_skip_steps": max_skip}
        made = Hooks(diffusers.MagCacheConfig, values, tell_magnitudes)
        yield "MagCache", f"{threshold:g}, at most {max_skip}", made
    for threshold, most in ((0.1, 2), (0.25, 2), (0.25, 3), (0.4, 3)):
        values = {"threshold": threshold, "max_consecutive_cached": most}
        made = Hooks(diffusers.SeaCacheConfig, values, hand_latents)
        yield "SeaCache", f"{threshold:g}, at most {most}", made
    stock = Hooks(diffusers.SeaCacheConfig, {}, stock=True)
    yield "SeaCache", "in the stock pipeline", stock


def broadcast(skip: int, window: tuple[int, int]) -> Hooks:
    """Pyramid Attention Broadcast."""
    values = {
        "spatial_attention_block_skip_range": skip,
        "spatial_attention_timestep_skip_range": window,
    }
    return Hooks(diffusers.PyramidAttentionBroadcastConfig, values, tell_timestep)


def seer(every: int, order: int, kept: str) -> Hooks:
    """TaylorSeer of attention and feed-forward, or of the last layer alone."""
    return Hooks(forecast, {"cache_interval": every, "max_order": order, "kept": kept})


def forecast(*, kept: str, **keywords: Any) -> Any:
    """TaylorSeer's configuration, for one of `KEPT`."""
    exact = {"taylor_factors_dtype": torch.float32}
    return diffusers.TaylorSeerCacheConfig(**KEPT[kept], **exact, **keywords)


def list_cache_dit() -> Iterator[tuple[str, CacheDit]]:
    """Setting and recipe of what cache-dit has."""
    yield "defaults", CacheDit()
    one = {"Fn_compute_blocks": 1}
    for order in (0, 1):
        for threshold in (0.04, 0.08):
            config = {**one, "residual_diff_threshold": threshold}
            yield f"F1B0 {threshold:g}{name_order(order)}", CacheDit(config, order)
    for policy in ("medium", "fast", "ultra"):
        yield f"{policy} mask{name_order(1)}", CacheDit(one, 1, policy)
    for every, order in ((3, 1), (3, 2), (4, 1)):
        yield f"mask of every {every}{name_order(order)}", CacheDit(one, order, every)


def name_order(order: int) -> str:
    """cache-dit's calibrator in words."""
    return f" + TaylorSeer O={order}" if order else ""


# ---- what they decide, run by dqar_fx ----------------------------------------------------


def list_theirs(steps: int, mode: str) -> Iterator[Contender]:
    """What peers decide, as branch tables."""
    for setting, recipe in list_static(steps):
        yield Contender(f"{setting}, by dqar_fx", kinds.THEIRS, steps, recipe, mode)


def list_static(steps: int) -> Iterator[tuple[str, Transformed]]:
    """Setting and recipe of each schedule."""
    for every in (2, 3, 4):
        yield f"FORA N={every}", fixed(prior_art.fora(steps, every), fora=every)
    for every, order in ((3, 1), (3, 2), (4, 1), (4, 2)):
        schedule = prior_art.taylorseer(steps, every, order)
        yield f"TaylorSeer N={every} O={order}", fixed(schedule, every=every, order=order)
    for threshold in (0.03, 0.05, 0.08, 0.18):
        yield f"SmoothCache {threshold:g}", smooth(threshold)
    for policy in ("medium", "fast"):
        for order in (0, 1):
            yield f"cache-dit {policy} mask{name_order(order)}", masked(policy, order)
    for threshold, max_skip in ((0.06, 1), (0.06, 3)):
        yield f"MagCache {threshold:g}, at most {max_skip}", magnitudes(threshold, max_skip)


def fixed(schedule: Schedule, **identity: Any) -> Transformed:
    """A schedule that needs no pipeline."""
    return Transformed(lambda bench: schedule, {"rule": "fixed", **identity})


def smooth(threshold: float) -> Transformed:
    """SmoothCache, calibrated on the pipeline."""
    make = partial(prior_art.smoothcache, threshold=threshold, lookahead=MAX_AGE)
    identity = {"rule": "smoothcache", "threshold": threshold}
    return Transformed(lambda bench: make(bench.once(calibrate)), identity)


def calibrate(bench: Bench) -> dqar_fx.Calibration:
    """What SmoothCache decides on, of pictures that are not compared."""
    return dqar_fx.calibrate(
        bench.pipe,
        list(bench.protocol.classes),
        num_steps=bench.steps,
        max_age=MAX_AGE,
        cells_per_step=0,
        sites="all",
        seed=1,
        guidance_scale=bench.protocol.guidance,
        output_type="pt",
    )


def masked(policy: str | int, order: int) -> Transformed:
    """cache-dit's step mask, with all blocks but the first as one span."""

    def make(bench: Bench) -> Schedule:
        last = len(bench.original.transformer_blocks)  # type: ignore[arg-type]
        schedule = prior_art.step_mask(
            make_mask(policy, bench.steps), sites=f"transformer_blocks.1:{last}"
        )
        return schedule.forecast(order) if order else schedule

    return Transformed(make, {"rule": "step_mask", "policy": policy, "order": order})


def magnitudes(threshold: float, max_skip: int) -> Transformed:
    """MagCache with the ratios that diffusers' calibration measures."""
    make = partial(prior_art.magcache, threshold=threshold, max_skip=max_skip)
    identity = {"rule": "magcache", "numbers": [threshold, max_skip]}
    return Transformed(lambda bench: make(bench.once(measure_magnitudes)), identity)
