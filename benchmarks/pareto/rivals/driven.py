"""A rival's model, called as the rival's documentation asks of a loop of one's own.

`DiTPipeline` opens no cache context and knows no current timestep. What stands in for the
model here does both, outside of anything that is compiled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from benchmarks.pareto.bench import Bench
from benchmarks.pareto.standin import StandIn

CONTEXT = "cond_uncond"
"""What diffusers calls the context of a batch with both halves of the guidance."""


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

    @classmethod
    def of(cls, bench: Bench) -> "Clock":
        """For a pipeline and its full number of steps."""
        return cls(bench.steps, getattr(bench.pipe.scheduler, "alphas_cumprod", None))

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
    """Calls a rival's model.

    Args:
        inner: What is called: the model, or what a compiler made of it.
        model: The model with the hooks.
        clock: Is set at each call.
        swapped: Whether the halves of the guidance change places for the model.
    """

    def __init__(
        self, inner: nn.Module, model: Any, clock: Clock, *, swapped: bool = False
    ) -> None:
        super().__init__(inner)
        self.__dict__["model"] = model  # once in the tree of modules is enough
        self.clock = clock
        self.swapped = swapped

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

    @contextmanager
    def in_context(self) -> Iterator[None]:
        """In the cache context of a call."""
        clock = self.clock
        with self.model.cache_context(
            CONTEXT,
            step_index=clock.step,
            num_inference_steps=clock.num_steps,
            timestep=clock.timestep,
            sigma=clock.sigma,
        ):
            yield

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """For one trajectory, without what hooks keep of an earlier one."""
        self.clock.step = -1
        self.model._reset_stateful_cache()
        yield


class Undriven(Driven):
    """Calls a rival's model as the stock pipeline does: in no context."""

    @contextmanager
    def in_context(self) -> Iterator[None]:
        """In none."""
        yield


def swap_halves(batch: torch.Tensor) -> torch.Tensor:
    """The second half of a batch before the first."""
    return torch.cat(batch.chunk(2)[::-1])


def mix_in_cache(model: nn.Module) -> Any:
    """Give a model the methods that diffusers' cached transformers have, and DiT has not."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind, CacheMixin), {})
    return model
