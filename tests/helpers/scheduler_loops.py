"""Every scheduler of diffusers, and a plain denoising loop that runs any of them.

The classes are those that diffusers exports, so that a new one takes part by itself. What a
class offers is read off its source and its signatures.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers.utils.dummy_pt_objects import DummyObject

from tests.helpers.models import seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

STEPS = 7
FLOW = "flow_prediction"
PREDICTIONS = ("epsilon", "v_prediction", FLOW)
TOKENS = "it denoises tokens of a vocabulary, no continuous latent"
NOT_RUN = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "HeliosDMDScheduler": "its steps need the noisy latents of its pipeline's stages",
    "KarrasVeScheduler": "its pipeline's loop is its own: noise is added before each call",
    "PiflowScheduler": "the model has a head for a policy, and steps need what that gives",
    "RFD4ProteinaScheduler": "it has no defaults: a protein's pipeline sets one per modality",
    "RePaintScheduler": "its steps need a picture and a mask, and go back at will",
    "ScoreSdeVeScheduler": "it has no step(), but a predictor and a corrector",
}
"""Why a class is left out, by its name."""
OPTIONS: dict[str, dict[str, Any]] = {"HeliosScheduler": {"stages": 1}}
"""What a class is made with, beside what it predicts."""
ENDS_IN_TIMESTEPS = ("DDPMWuerstchenScheduler", "SCMScheduler")
"""Classes whose last timestep is where the last step goes to: it is not called."""
ALWAYS_FROM_FIRST = ("HeliosScheduler",)
"""Classes whose steps begin with the first, whatever ``set_begin_index`` was told."""
CHOSEN: dict[str, list[float]] = {
    "CMStochasticIterativeScheduler-timesteps": [39, 30, 26, 11, 5, 0],
    "EDMEulerScheduler-sigmas": [0.0, 0.1, 0.3, 0.6, 0.8, 1.0],
    "LTXEulerAncestralRFScheduler-sigmas": [1.0, 0.8, 0.5, 0.4, 0.2, 0.0],
    "LTXEulerAncestralRFScheduler-timesteps": [1.0, 0.8, 0.5, 0.4, 0.2, 0.0],
    "MiniMaxH3Scheduler-sigmas": [1.0, 0.8, 0.5, 0.4, 0.2, 0.0],
    "SCMScheduler-timesteps": [1.57, 1.2, 1.0, 0.5, 0.2, 0.0],
    "DDPMWuerstchenScheduler-timesteps": [1.0, 0.8, 0.5, 0.4, 0.2, 0.0],
}
"""Timesteps and sigmas of classes that count them in their own way."""
WRAPPED: dict[str, Callable[[list[float]], Any]] = {
    "EDMEulerScheduler": torch.tensor,
    "HeliosScheduler": partial(np.array, dtype=np.float32),
    "UniPCMultistepScheduler": np.array,
}
"""How sigmas are given where a list fails."""
NOT_OFFERED = {("HeliosScheduler", "epsilon")}
"""Predictions that a class names, and divides by zero for at its first step."""


def list_schedulers() -> Iterator[type]:
    """The classes that diffusers exports and that are installed."""
    for name in sorted(dir(diffusers)):
        if name.endswith("Scheduler") and "Flax" not in name:
            yield getattr(diffusers, name)


def is_installed(kind: type) -> bool:
    """Whether a class is there, not only its name for want of another package."""
    return not isinstance(kind, DummyObject)


@dataclass
class Variant:
    """One way to run a scheduler.

    Attributes:
        kind: The class.
        prediction: What the model predicts; None where the class does not ask.
        custom: ``"timesteps"`` or ``"sigmas"`` where these are given; None for a number of
            steps.
    """

    kind: Any
    prediction: str | None
    custom: str | None

    def __str__(self) -> str:
        """As a test is named."""
        parts = (self.kind.__name__.removesuffix("Scheduler"), self.prediction, self.custom)
        return "-".join(part for part in parts if part)

    def make(self) -> Any:
        """A scheduler whose timesteps are not set."""
        options = dict(OPTIONS.get(self.kind.__name__, {}))
        if self.prediction is not None:
            options["prediction_type"] = self.prediction
        if self.prediction == "flow_prediction" and accepts(self.kind, "use_flow_sigmas"):
            options["use_flow_sigmas"] = True
        return self.kind(**options)

    def set(self, scheduler: Any) -> None:
        """Set the timesteps: of as many steps, or those that are chosen."""
        own = inspect.signature(scheduler.set_timesteps).parameters
        given = {
            name: None for name in own if name in ("max_timesteps", "intermediate_timesteps")
        }
        if self.custom is None:
            given.pop("max_timesteps", None)
            scheduler.set_timesteps(STEPS, **given)
            return
        chosen = self.choose(scheduler, given)
        number = own.get("num_inference_steps")
        if number is not None and number.default is number.empty:
            has_end = self.kind.__name__ in ENDS_IN_TIMESTEPS
            given["num_inference_steps"] = len(chosen) - has_end
        wrap = WRAPPED.get(self.kind.__name__, list)
        scheduler.set_timesteps(**given, **{self.custom: wrap(chosen)})

    def choose(self, scheduler: Any, given: dict[str, Any]) -> list[float]:
        """Timesteps or sigmas whose steps are of unequal length."""
        known = CHOSEN.get(f"{self.kind.__name__}-{self.custom}")
        if known is None:
            other = copy.deepcopy(scheduler)
            other.set_timesteps(STEPS + 1, **given)
            values = getattr(other, self.custom).tolist()
            known = list(dict.fromkeys(value for value in values if value > 0))
            del known[2]
        return known


def accepts(kind: Any, option: str, method: str = "__init__") -> bool:
    """Whether a method of a class has an option."""
    return option in inspect.signature(getattr(kind, method)).parameters


def list_variants(kind: Any) -> Iterator[Variant]:
    """All ways to run a class that it offers."""
    source = inspect.getsource(kind)
    has_kinds = accepts(kind, "prediction_type")
    offered: list[str | None] = [None]
    if has_kinds:
        named = [each for each in PREDICTIONS if f'"{each}"' in source]
        offered = [
            each for each in named if (kind.__name__, each) not in NOT_OFFERED
        ] or offered
    customs = [c for c in ("timesteps", "sigmas") if accepts(kind, c, "set_timesteps")]
    for prediction in offered:
        yield Variant(kind, prediction, None)
    for custom in customs:
        is_flow = (
            custom == "sigmas" and accepts(kind, "use_flow_sigmas") and offered[-1] == FLOW
        )
        yield Variant(kind, FLOW if is_flow else offered[0], custom)


class Loop:
    """What stands for a pipeline: a transformer, a scheduler, and a loop over timesteps."""

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        self.transformer, self.scheduler = transformer, scheduler

    @torch.no_grad()
    def __call__(
        self, variant: Variant, ask: Callable[..., torch.Tensor], start: int = 0
    ) -> torch.Tensor:
        """The latent after all steps.

        Args:
            variant: How timesteps are set.
            ask: Called with the number of the timestep, the latent and the timesteps, which
                are no elements of the scheduler's.
            start: The number of the first one.
        """
        scheduler = self.scheduler
        variant.set(scheduler)
        if start and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        scale = getattr(scheduler, "scale_model_input", lambda latent, _: latent)
        latent = seeded(2, 4, 4, 4) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        stepper = Stepper(scheduler)
        for number, t in list(enumerate(called_timesteps(scheduler)))[start:]:
            answer = ask(number, scale(latent, t), t.repeat(len(latent)))
            latent = stepper.step(answer, number, latent)
        return latent


def called_timesteps(scheduler: Any) -> torch.Tensor:
    """The timesteps that the denoiser is called at."""
    has_end = type(scheduler).__name__ in ENDS_IN_TIMESTEPS
    return scheduler.timesteps[:-1] if has_end else scheduler.timesteps


class Stepper:
    """Calls ``step`` as pipelines do, with a generator where a scheduler takes one."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.generator = scheduler, torch.Generator().manual_seed(5)
        self.picture: torch.Tensor | None = None

    def step(self, answer: torch.Tensor, number: int, latent: torch.Tensor) -> torch.Tensor:
        """The latent at the next timestep."""
        scheduler, name = self.scheduler, type(self.scheduler).__name__
        t = scheduler.timesteps[number]
        has_noise = accepts(scheduler, "generator", "step")
        more = {"generator": self.generator} if has_noise else {}
        if name == "DDPMWuerstchenScheduler":
            t = t.repeat(len(latent))
        if name == "CogVideoXDPMScheduler":
            before = scheduler.timesteps[number - 1] if number else None
            latent, self.picture = scheduler.step(
                answer, self.picture, t, before, latent, **more, return_dict=False
            )
            return latent
        return scheduler.step(answer, t, latent, **more).prev_sample
