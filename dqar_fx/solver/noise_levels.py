"""Signal and noise of a sample as functions of the timestep, also between whole timesteps.

A sample at timestep *t* is ``alpha(t) * data + sigma(t) * noise``. Diffusion models were
trained on a table of alphas, between whose entries the logarithm of the signal-to-noise ratio
is taken as linear; flow matching has ``alpha = 1 - sigma`` and ``sigma = t / training steps``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FLOW = "flow_prediction"
LEAST_SIGNAL = 1e-8
"""Square of the share of data in a sample, below which there is none."""
PREDICTIONS = ("epsilon", "v_prediction", "sample", FLOW)
"""What a denoiser may give: noise, velocity of diffusion, data, noise less data."""


@dataclass(frozen=True)
class NoiseLevels:
    """The levels that a model was trained for.

    Attributes:
        prediction: What the denoiser gives, one of `PREDICTIONS`.
        last: The largest timestep, at which there is noise alone, or nearly.
        log_ratios: ``log(alpha / sigma)`` at timesteps 0, 1, ...; empty for flow matching.
    """

    prediction: str
    last: float
    log_ratios: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, scheduler: Any) -> NoiseLevels:
        """The levels of the model that a scheduler of diffusers is for.

        Raises:
            OptionError: The scheduler does not say.
        """
        config, name = scheduler.config, type(scheduler).__name__
        is_flow = name.startswith("FlowMatch")
        prediction = config.get("prediction_type", FLOW if is_flow else None)
        cumulated = getattr(scheduler, "alphas_cumprod", None)
        odd = ["invert_sigmas"] if config.get("invert_sigmas") else []
        if config.get("use_flow_sigmas") and prediction != FLOW:
            odd.append("use_flow_sigmas")
        if odd or prediction not in PREDICTIONS or (prediction != FLOW and cumulated is None):
            found = "".join(f", {option}=True" for option in odd)
            raise OptionError(
                f"{name} with prediction_type={prediction!r}{found}: expected a scheduler "
                "with alphas_cumprod, or one of flow matching, whose denoiser gives one of "
                f"{', '.join(PREDICTIONS)}. Give the pipeline such a scheduler first"
            )
        if prediction == FLOW or cumulated is None:
            return cls(FLOW, float(config.get("num_train_timesteps", 1000)))
        squares = np.asarray(cumulated.double().cpu())
        if prediction == "epsilon" and squares.min() < LEAST_SIGNAL:
            raise OptionError(
                f"{name}: at timestep {int(squares.argmin())} there is no signal, of which "
                "nothing can be told from a prediction of noise. Expected a model that "
                "predicts velocity or data, or betas without rescale_betas_zero_snr"
            )
        squares = squares.clip(1e-12, 1 - 1e-12)
        ratios = 0.5 * np.log(squares / (1 - squares))
        return cls(prediction, float(len(squares) - 1), tuple(ratios.tolist()))

    @property
    def is_flow(self) -> bool:
        """Whether the model was trained by flow matching."""
        return not self.log_ratios

    def at(self, timesteps: Sequence[float] | Floats) -> tuple[Floats, Floats]:
        """Alphas and sigmas at timesteps: float64, of their shape."""
        places = np.asarray(timesteps, float)
        if self.is_flow:
            sigmas = places / self.last
            return 1 - sigmas, sigmas
        ratios = np.interp(places, np.arange(len(self.log_ratios)), self.log_ratios)
        return np.sqrt(1 / (1 + np.exp(-2 * ratios))), np.sqrt(1 / (1 + np.exp(2 * ratios)))

    def log_ratio(self, timesteps: Sequence[float] | Floats) -> Floats:
        """``log(alpha / sigma)`` at timesteps; minus infinity for noise alone."""
        alphas, sigmas = self.at(timesteps)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(alphas) - np.log(sigmas), float)

    def at_ratio(self, ratios: Sequence[float] | Floats) -> Floats:
        """Timesteps at which ``log(alpha / sigma)`` has these values; see `log_ratio`."""
        wanted = np.asarray(ratios, float)
        if self.is_flow:
            return np.asarray(self.last / (1 + np.exp(wanted)))
        known = np.array(self.log_ratios)
        places = np.arange(len(known) - 1, -1, -1.0)
        return np.asarray(np.interp(wanted, known[::-1], places))

    def even_timesteps(self, num_steps: int) -> Floats:
        """Timesteps at even distances from the last one to 0, which is left out."""
        return self.last * (1 - np.arange(num_steps) / num_steps)

    def even_ratios(self, num_steps: int) -> Floats:
        """Timesteps at even distances of the log ratio; the end of it is left out.

        For flow matching the ratio has no ends: it lies between those at 0.1 % of the
        timesteps from either end, and the first timestep is the last one of training.
        """
        ends = np.array([self.last, 0.0])
        if self.is_flow:
            ends = self.last * np.array([0.999, 0.001])
        first, end = self.log_ratio(ends)
        wanted = np.linspace(first, end, num_steps + 1)[:-1]
        if self.is_flow:
            return np.append(self.last, self.at_ratio(wanted[1:]))
        return self.at_ratio(wanted)
