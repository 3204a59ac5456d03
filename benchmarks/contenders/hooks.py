"""The caches of diffusers, attached to a DiT and called as their documentation asks.

Each contender has a copy of the model of its own, so that hooks cannot leak, and begins every
trajectory with fresh state. `DiTPipeline` opens no cache context and knows no current
timestep: what stands in for the model here does both, outside of anything that is compiled.

Source: diffusers 0.42, hooks/*.py, and its page "Caching".
"""

import ast
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import hooks
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from benchmarks.contenders.bench import Bench, StandIn
from benchmarks.contenders.contenders import Entrant
from benchmarks.contenders.kinds import BLOCKS, COMPILED, EAGER, UNLIMITED
from benchmarks.contenders.recipes import REPEATED

CONTEXT = "cond_uncond"
"""What diffusers calls the context of a batch with both halves of the guidance."""
LIMIT = 4096
"""Of recompiles, for none."""


@dataclass
class Clock:
    """Where the loop is.

    Attributes:
        num_steps: Steps of the trajectory.
        alphas: Cumulative alphas of the scheduler, by timestep.
        step: The current one; -1 before the first.
        timestep: Of that step.
    """

    num_steps: int
    alphas: torch.Tensor | None = None
    step: int = -1
    timestep: int = 0

    @property
    def scale(self) -> float:
        """Factor that makes a latent a weighted mean of picture and noise.

        DDIM's latent is ``sqrt(a) picture + sqrt(1 - a) noise``; flow matching, which
        `sigma` belongs to, has ``(1 - sigma) picture + sigma noise``.
        """
        assert self.alphas is not None, "a scheduler with cumulative alphas"
        alpha = float(self.alphas[self.timestep])
        return float(1 / (alpha**0.5 + (1 - alpha) ** 0.5))

    @property
    def sigma(self) -> float | None:
        """Weight of the noise in that mean; None if the scheduler does not tell."""
        if self.alphas is None:
            return None
        return float((1 - float(self.alphas[self.timestep])) ** 0.5) * self.scale


class Driven(StandIn):
    """Calls a model with hooks.

    Args:
        inner: What is called: the model, or what a compiler made of it.
        model: The model with the hooks.
        clock: Is set at each call.
        swapped: Whether the halves of the guidance change places for the model.
        stock: Whether it is called as the stock pipeline does: in no cache context.
    """

    def __init__(
        self, inner: nn.Module, model: Any, clock: Clock, swapped: bool, stock: bool
    ) -> None:
        super().__init__(inner)
        self.__dict__["model"] = model  # once in the tree of modules is enough
        self.clock, self.swapped, self.stock = clock, swapped, stock

    def forward(
        self, hidden_states: torch.Tensor, timestep: Any, class_labels: torch.Tensor
    ) -> Any:
        """One step."""
        clock = self.clock
        clock.step, clock.timestep = clock.step + 1, int(timestep[0])
        inputs = hidden_states, timestep, class_labels
        if self.swapped:
            inputs = tuple(map(swap_halves, inputs))
        with self.in_context():
            output = self.inner(inputs[0], timestep=inputs[1], class_labels=inputs[2])
        if self.swapped:
            output.sample = swap_halves(output.sample)
        return output

    def in_context(self) -> AbstractContextManager[object]:
        """The cache context of a call."""
        if self.stock:
            return nullcontext()
        return self.model.cache_context(  # type: ignore[no-any-return]
            CONTEXT,
            step_index=self.clock.step,
            num_inference_steps=self.clock.num_steps,
            timestep=self.clock.timestep,
            sigma=self.clock.sigma,
        )

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """For one trajectory, without what hooks keep of an earlier one."""
        self.clock.step = -1
        self.model._reset_stateful_cache()
        yield


def swap_halves(batch: torch.Tensor) -> torch.Tensor:
    """The second half of a batch before the first."""
    return torch.cat(batch.chunk(2)[::-1])


def mix_in_cache(model: nn.Module) -> Any:
    """Give a model the methods that diffusers' cached transformers have, and DiT has not."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind, CacheMixin), {})
    return model


@dataclass(frozen=True)
class Hooks:
    """A model with hooks of diffusers.

    Attributes:
        kind: Makes the configuration.
        identity: Its keywords.
        learn: Further keywords, which follow from the pipeline and where its loop is.
        swapped: Whether guidance halves change places: FasterCache takes the second half for
            the conditional one, which `DiTPipeline` puts first.
        stock: Whether it is called as `DiTPipeline` does, in no cache context.
    """

    kind: Callable[..., Any]
    identity: Mapping[str, Any]
    learn: Callable[[Bench, Clock], Mapping[str, Any]] = lambda bench, clock: {}
    swapped: bool = False
    stock: bool = False

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it; what is compiled is compiled with the hooks on it."""
        clock = Clock(bench.steps, getattr(bench.pipe.scheduler, "alphas_cumprod", None))
        model = mix_in_cache(bench.clone())
        model.enable_cache(self.kind(**self.identity, **self.learn(bench, clock)))
        inner = model
        if mode == COMPILED:
            inner = bench.compile(model)
        elif mode == UNLIMITED:
            inner = bench.compile(model, recompile_limit=LIMIT)
        elif mode == BLOCKS:
            model._repeated_blocks = list(REPEATED)
            model.compile_repeated_blocks()
        driven = Driven(inner, model, clock, self.swapped, self.stock)
        return Entrant(driven, driven.fresh, count_hooked(model))


def count_hooked(model: nn.Module) -> int:
    """Modules that a hook is on."""
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    return sum(registry is not None and bool(registry.hooks) for registry in registries)


# ---- keywords that follow from the pipeline ----------------------------------------------


def tell_timestep(bench: Bench, clock: Clock) -> dict[str, Any]:
    """For Pyramid Attention Broadcast and FasterCache."""
    del bench
    return {"current_timestep_callback": lambda: clock.timestep}


def tell_magnitudes(bench: Bench, clock: Clock) -> dict[str, Any]:
    """For MagCache: ratios from one run of its own calibration."""
    del clock
    ratios = bench.once(measure_magnitudes)
    return {"mag_ratios": ratios, "num_inference_steps": bench.steps}


def measure_magnitudes(bench: Bench) -> list[float]:
    """MagCache's ratios, as its calibration prints them."""
    calibrated = {"calibrate": True, "num_inference_steps": bench.steps}
    entrant = Hooks(hooks.MagCacheConfig, calibrated).build(bench, EAGER)
    printed = io.StringIO()
    with redirect_stdout(printed):
        bench.run(entrant, bench.steps, bench.task(0))
    lists = (line for line in printed.getvalue().splitlines() if line.startswith("[1.0"))
    ratios: list[float] = ast.literal_eval(next(lists))
    return ratios


def hand_latents(bench: Bench, clock: Clock) -> dict[str, Any]:
    """For SeaCache, which knows no DiT: latents as flow matching has them."""
    del bench

    def take_latents(module: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
        del module
        latents = args[0] if args else kwargs["hidden_states"]
        conditional = latents[: len(latents) // 2] * clock.scale
        return list(conditional.unsqueeze(2))  # [C, T, H, W] of each picture, with T 1

    return {"raw_vision_callback": take_latents}
