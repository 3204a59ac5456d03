"""The caches of diffusers: Pyramid Attention Broadcast, FasterCache, TaylorSeer, and others.

Source: diffusers 0.42, hooks/*.py, and its page "Caching".
"""

import ast
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import hooks
from torch import nn

from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import EAGER, Entrant
from benchmarks.pareto.rivals.driven import Clock, Driven, Undriven, mix_in_cache

BATCHED = ("hidden_states", "encoder_hidden_states", "timestep", "class_labels")
"""Arguments with both halves of the guidance; FasterCache's default lacks the labels."""
Configure = Callable[[Bench, Clock], Any]


@dataclass(frozen=True)
class Hooks:
    """A model with hooks of diffusers.

    Attributes:
        configure: Makes the configuration.
        identity: What it says.
        swapped: Whether guidance halves change places: FasterCache takes the second half for
            the conditional one, which `DiTPipeline` puts first.
        stock: Whether it is called as `DiTPipeline` does, in no cache context.
    """

    configure: Configure
    identity: Mapping[str, Any]
    swapped: bool = False
    stock: bool = False

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it; what is compiled is compiled with the hooks on it."""
        model, clock = mix_in_cache(bench.clone()), Clock.of(bench)
        model.enable_cache(self.configure(bench, clock))
        inner = model if mode == EAGER else bench.compile(model)
        drive = Undriven if self.stock else Driven
        driven = drive(inner, model, clock, swapped=self.swapped)
        return Entrant(driven, driven.fresh, count_hooked(model))


def count_hooked(model: nn.Module) -> int:
    """Modules that a hook is on."""
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    return sum(registry is not None and bool(registry.hooks) for registry in registries)


# ---- one function per cache: keywords to configuration -----------------------------------


def broadcast_attention(**keywords: Any) -> Configure:
    """Pyramid Attention Broadcast."""

    def configure(bench: Bench, clock: Clock) -> Any:
        del bench
        return hooks.PyramidAttentionBroadcastConfig(
            current_timestep_callback=lambda: clock.timestep, **keywords
        )

    return configure


def cache_faster(**keywords: Any) -> Configure:
    """FasterCache."""

    def configure(bench: Bench, clock: Clock) -> Any:
        del bench
        return hooks.FasterCacheConfig(
            current_timestep_callback=lambda: clock.timestep, tensor_format="BCHW", **keywords
        )

    return configure


def cache_by_first_block(threshold: float) -> Configure:
    """FirstBlockCache."""
    return lambda bench, clock: hooks.FirstBlockCacheConfig(threshold=threshold)


def forecast_modules(**keywords: Any) -> Configure:
    """TaylorSeer."""
    return lambda bench, clock: hooks.TaylorSeerCacheConfig(**keywords)


def forecast_output(**keywords: Any) -> Configure:
    """TaylorSeer of the last layer's output alone; blocks are skipped where it is forecast.

    That is its "lite" mode, whose own patterns find no last layer in a DiT.
    """
    patterns = {
        "skip_predict_identifiers": [r"transformer_blocks\.\d+"],
        "cache_identifiers": ["proj_out_2"],
    }
    return forecast_modules(**patterns, **keywords)


def skip_by_magnitude(**keywords: Any) -> Configure:
    """MagCache, with ratios from one run of its own calibration."""

    def configure(bench: Bench, clock: Clock) -> Any:
        del clock
        ratios = bench.once(measure_magnitudes)
        return hooks.MagCacheConfig(
            mag_ratios=ratios, num_inference_steps=bench.steps, **keywords
        )

    return configure


def gate_by_spectrum(*, adapted: bool = True, **keywords: Any) -> Configure:
    """SeaCache, which knows no DiT: latents are handed to it as flow matching has them."""

    def configure(bench: Bench, clock: Clock) -> Any:
        del bench

        def take_latents(module: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
            del module
            latents = args[0] if args else kwargs["hidden_states"]
            conditional = latents[: len(latents) // 2] * clock.scale
            return list(conditional.unsqueeze(2))  # [C, T, H, W] of each picture, with T 1

        callback = take_latents if adapted else None
        return hooks.SeaCacheConfig(raw_vision_callback=callback, **keywords)

    return configure


def measure_magnitudes(bench: Bench) -> list[float]:
    """MagCache's ratios, as its calibration prints them."""
    calibrate = hooks.MagCacheConfig(calibrate=True, num_inference_steps=bench.steps)
    entrant = Hooks(lambda bench, clock: calibrate, {}).build(bench, EAGER)
    printed = io.StringIO()
    with redirect_stdout(printed):
        bench.run(entrant, bench.steps, bench.task(0))
    lists = (line for line in printed.getvalue().splitlines() if line.startswith("[1.0"))
    ratios: list[float] = ast.literal_eval(next(lists))
    return ratios
