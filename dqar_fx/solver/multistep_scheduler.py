"""A scheduler that is a list of numbers: timesteps, and weights of what came before.

Each step takes the data that the denoiser predicts, corrects it by what was predicted before,
and goes on the line that is exact where the prediction is constant:

    corrected = data[i] + w[i, 0] (data[i] - data[i-1]) + w[i, 1] (data[i-1] - data[i-2]) + ...
    sample    = sigma[i+1] / sigma[i] sample + (alpha[i+1] - alpha[i] sigma[i+1] / sigma[i])
                corrected

With one weight, half the ratio of the steps in ``log(alpha / sigma)``, this is DPM-Solver++
(2M) (Lu et al., 2211.01095, algorithm 2). Fitted weights are another solver of the same cost,
and a fitted grid says where it evaluates the denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.outputs import BaseOutput

from dqar_fx.errors import OptionError, check_known

from .noise_levels import FLOW, PREDICTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .noise_levels import Floats, NoiseLevels


@dataclass
class MultistepOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: The sample at the next timestep.
        pred_original_sample: The data as the denoiser predicts it.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class MultistepScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler with timesteps and weights of its own, saved and loaded as all schedulers.

    It has the timesteps that it was made with, and refuses to make another number of them.

    Args:
        grid: Timesteps that the denoiser is told, descending; they need not be whole.
        alphas: The share of data in the sample that it is given with each. It need not be that
            of the timestep: another time than the sample's is one more number to fit.
        sigmas: The share of noise.
        weights: Per step the weights of differences of predictions, the newest first.
        prediction_type: What the denoiser gives, see `noise_levels.PREDICTIONS`.
        num_train_timesteps: Timesteps that the model was trained with.
    """

    order = 1
    """Calls of the denoiser for each step."""
    init_noise_sigma = 1.0
    """By what the first noise is multiplied."""

    @register_to_config  # type: ignore[untyped-decorator]  # of diffusers
    def __init__(
        self,
        grid: Sequence[float] = (),
        alphas: Sequence[float] = (),
        sigmas: Sequence[float] = (),
        weights: Sequence[Sequence[float]] = (),
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
    ) -> None:
        check_known("prediction_type ", prediction_type, PREDICTIONS, OptionError)
        check_numbers(grid, alphas, sigmas, weights)
        if prediction_type == "epsilon" and min(alphas) <= 0:
            raise OptionError(
                "alphas of 0: of a sample without data a prediction of noise tells nothing. "
                "Expected alphas above 0"
            )
        self.timesteps = torch.tensor(grid, dtype=torch.float32)
        # as schedulers of diffusers tell how much noise there is, with the end
        shares = [1.0] * len(grid) if prediction_type == FLOW else alphas
        noise = [sigma / alpha for sigma, alpha in zip(sigmas, shares, strict=True)]
        self.sigmas = torch.tensor([*noise, 0.0])
        self.num_inference_steps = len(grid)
        self._data: list[torch.Tensor] = []
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @classmethod
    def of(
        cls,
        levels: NoiseLevels,
        grid: Floats,
        weights: Floats | None = None,
        told: Floats | None = None,
    ) -> MultistepScheduler:
        """Make one for a model.

        Args:
            levels: The levels that the model was trained for.
            grid: Timesteps of the samples, descending.
            weights: float64 ``[steps, differences]``; by default those of DPM-Solver++ (2M).
            told: Timesteps that the denoiser is told; by default those of the samples.
        """
        grid = np.asarray(grid, float)
        alphas, sigmas = levels.at(grid)
        chosen = dpm_solver_weights(levels, grid) if weights is None else weights
        made: MultistepScheduler = cls(
            grid=(grid if told is None else told).tolist(),
            alphas=alphas.tolist(),
            sigmas=sigmas.tolist(),
            weights=chosen.tolist(),
            prediction_type=levels.prediction,
            num_train_timesteps=round(levels.last + (not levels.is_flow)),
        )
        return made

    @property
    def _numbers(self) -> Any:
        return self.config

    @property
    def num_steps(self) -> int:
        """Evaluations of the denoiser in a run."""
        return len(self._numbers.grid)

    @property
    def step_index(self) -> int | None:
        """The step that comes next; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The step that a pipeline says it begins with."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with a later step, as pipelines do that begin with a picture.

        Raises:
            OptionError: There is no such step.
        """
        if not 0 <= begin_index < self.num_steps:
            raise OptionError(
                f"begin_index={begin_index!r}: this solver has {self.num_steps} steps, from 0"
            )
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run.

        Args:
            num_inference_steps: None, or as many as there are.
            device: Where the timesteps shall be.
            timesteps: None: those that are given by a caller are refused.
            sigmas: What pipelines of flow matching give: even ones are passed over.
            mu: What those give for a shift of the timesteps, which is passed over: the grid
                stands.

        Raises:
            OptionError: Another number of steps, or other sigmas, are asked for.
        """
        del mu
        if timesteps is not None:
            raise OptionError(
                f"timesteps={list(timesteps)}: this solver has timesteps of its own. Leave "
                "them out; a pipeline that insists on its own needs another scheduler"
            )
        known = self.num_steps
        asked = num_inference_steps if sigmas is None else len(sigmas)
        if asked not in (None, known):
            raise OptionError(
                f"this solver has {known} steps, but {asked} were asked for. Give "
                f"num_inference_steps={known}, or fit another solver with {asked} steps"
            )
        if sigmas is not None and not np.allclose(sigmas, np.linspace(1, 1 / known, known)):
            raise OptionError(
                f"sigmas={list(sigmas)}: this solver has timesteps of its own. Leave sigmas "
                "out, or use another scheduler"
            )
        self.timesteps = self.timesteps.to(device)
        self.num_inference_steps = known
        self._data, self._step_index, self._begin_index = [], None, None

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sample as it is."""
        del timestep
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> MultistepOutput | tuple[torch.Tensor]:
        """Go on to the next timestep, in float32.

        Args:
            model_output: What the denoiser gave, guidance applied.
            timestep: At which it did.
            sample: What it was given.
            return_dict: Whether to give an object rather than a tuple.

        Raises:
            OptionError: A first timestep is none of the grid, or all steps are done.
        """
        if self._step_index is None:
            begins = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begins is None else begins
        index, config = self._step_index, self._numbers
        if index >= self.num_steps:
            raise OptionError(
                f"all {self.num_steps} steps of this solver are done: begin a run by "
                "set_timesteps()"
            )
        last = index + 1 == self.num_steps
        alpha, sigma = config.alphas[index], config.sigmas[index]
        next_alpha, next_sigma = (
            (1.0, 0.0) if last else (config.alphas[index + 1], config.sigmas[index + 1])
        )
        sample32 = sample.float()
        data = predict_data(
            model_output.float(), sample32, alpha, sigma, config.prediction_type
        )
        weights = config.weights[index]
        self._data = [data, *self._data[: len(weights)]]
        corrected = data
        for weight, newer, older in zip(weights, self._data, self._data[1:], strict=False):
            corrected = corrected + weight * (newer - older)
        share = next_sigma / sigma
        moved = share * sample32 + (next_alpha - alpha * share) * corrected
        self._step_index += 1
        before = moved.to(model_output.dtype)
        return MultistepOutput(before, data) if return_dict else (before,)

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """The step of a timestep.

        Raises:
            OptionError: There is none.
        """
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        distances = (known.cpu() - float(timestep)).abs()
        nearest = int(distances.argmin())
        if distances[nearest] > 1e-2:
            raise OptionError(
                f"timestep {float(timestep):g} is none of this solver's, the nearest of which "
                f"is {float(known[nearest]):g}. Take them from scheduler.timesteps"
            )
        return nearest

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Samples of pictures at timesteps of the grid, one for each."""
        shape = (-1, *[1] * (original_samples.dim() - 1))
        places = [self.index_for_timestep(each) for each in timesteps.flatten()]
        alphas, sigmas = (
            torch.tensor([numbers[place] for place in places]).view(shape).to(noise)
            for numbers in (self._numbers.alphas, self._numbers.sigmas)
        )
        return alphas * original_samples + sigmas * noise

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """`add_noise` as schedulers of flow matching call it."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        """Timesteps of the model's training, as of schedulers of diffusers."""
        return int(self._numbers.num_train_timesteps)


def predict_data(
    output: torch.Tensor, sample: torch.Tensor, alpha: float, sigma: float, prediction: str
) -> torch.Tensor:
    """The data that a denoiser's output stands for."""
    if prediction == "epsilon":
        return (sample - sigma * output) / alpha
    if prediction == "v_prediction":
        return alpha * sample - sigma * output
    return output if prediction == "sample" else sample - sigma * output


def dpm_solver_weights(levels: NoiseLevels, grid: Floats) -> Floats:
    """The weights of DPM-Solver++ (2M), of first order at the first and the last step.

    They are float64 ``[steps, 1]``.
    """
    weights = np.zeros((len(grid), 1))
    distances = np.diff(levels.log_ratio(grid))  # infinite from noise alone
    weights[1:-1, 0] = 0.5 * distances[1:] / distances[:-1]
    return weights


def check_numbers(
    grid: Sequence[float],
    alphas: Sequence[float],
    sigmas: Sequence[float],
    weights: Sequence[Sequence[float]],
) -> None:
    """Refuse numbers that are no solver's.

    Raises:
        OptionError: There are none, they differ in length, are not finite, or the timesteps
            do not descend.
    """
    if not len(grid):
        raise OptionError(
            "a solver without timesteps: expected the numbers of one, as fit_solver gives it, "
            "not the configuration of another scheduler"
        )
    if not all(np.ndim(row) == 1 for row in weights):
        raise OptionError(f"weights {weights!r}: expected a list of numbers for each step")
    lengths = {len(alphas), len(sigmas), len(weights), len(grid)}
    if len(lengths) > 1:
        raise OptionError(
            f"{len(grid)} timesteps, {len(alphas)} alphas, {len(sigmas)} sigmas and "
            f"{len(weights)} rows of weights: expected as many of each"
        )
    if not all(np.isfinite(row).all() for row in (grid, alphas, sigmas, *weights)):
        raise OptionError("timesteps, alphas, sigmas and weights have to be finite numbers")
    if (np.diff(grid) >= 0).any() or min(sigmas) <= 0:
        raise OptionError(
            f"timesteps {list(grid)}: expected descending ones, with noise left at the last"
        )
