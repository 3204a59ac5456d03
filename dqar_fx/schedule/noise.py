"""The signal-to-noise ratio of the latent at each step, from a diffusers scheduler.

Source: Kingma et al. 2021, arXiv 2107.00630.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .schedule import check_at_least

if TYPE_CHECKING:
    from numpy.typing import NDArray


def signal_to_noise(scheduler: Any, num_steps: int, **options: Any) -> NDArray[np.float64]:
    """Compute the signal-to-noise ratio of the latent at each call of the denoiser.

    Args:
        scheduler: A diffusers scheduler; it is not changed.
        num_steps: As given to the pipeline (``num_inference_steps``).
        **options: More arguments of ``set_timesteps``, such as ``mu``.

    Returns:
        float64 ``[timesteps]``: a scheduler that calls the denoiser twice per step has twice
        as many timesteps.

    Raises:
        ScheduleError: The scheduler has neither alphas nor sigmas, or refuses the arguments.

    Source:
        Kingma et al. 2021, arXiv 2107.00630: SNR = alpha_bar / (1 - alpha_bar).
    """
    check_at_least(1, num_steps=num_steps)
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(num_steps, **options)
    except (AttributeError, TypeError, ValueError) as error:
        raise ScheduleError(
            f"{type(scheduler).__name__}.set_timesteps({num_steps}) failed: {error}. Expected "
            "a diffusers scheduler; what else it needs (such as mu=...) is passed on"
        ) from error
    return noise_as_set(own)


def noise_as_set(scheduler: Any) -> NDArray[np.float64]:
    """Compute the same ratios, float64 ``[timesteps]``, where the timesteps are set already.

    Raises:
        ScheduleError: The scheduler has no timesteps, or neither alphas nor sigmas.
    """
    if not hasattr(scheduler, "timesteps"):
        raise ScheduleError(f"{type(scheduler).__name__} has no timesteps")
    steps = np.asarray(scheduler.timesteps.cpu(), np.float64)
    sigmas = getattr(scheduler, "sigmas", None)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    with np.errstate(divide="ignore"):  # no noise at all is an infinite ratio
        if sigmas is not None:
            sigma = sigma_of_calls(scheduler, len(steps))
            signal = 1 - sigma if is_flow(scheduler, sigma) else np.ones_like(sigma)
            return (signal / sigma) ** 2
        if alphas is not None:
            kept = np.asarray(alphas.cpu(), np.float64)[steps.round().astype(np.int64)]
            return np.asarray(kept / (1 - kept), np.float64)
    raise ScheduleError(
        f"{type(scheduler).__name__} has neither alphas_cumprod nor sigmas, so that its noise "
        "levels are unknown"
    )


def sigma_of_calls(scheduler: Any, num_calls: int) -> NDArray[np.float64]:
    """Return the noise level of the latent at each denoiser call, float64 ``[calls]``."""
    sigma: NDArray[np.float64] = scheduler.sigmas.double().cpu().numpy()[:num_calls].copy()
    between = getattr(scheduler, "sigmas_interpol", None)
    if between is not None:  # second-order steps: every other call is at a level between
        sigma[1::2] = between.double().cpu().numpy()[:num_calls][1::2]
    return 1 - sigma if scheduler.config.get("invert_sigmas", False) else sigma


def is_flow(scheduler: Any, sigma: NDArray[np.float64]) -> bool:
    """Return whether a latent is ``(1 - sigma) x + sigma noise``, not ``x + sigma noise``."""
    if getattr(scheduler, "alphas_cumprod", None) is not None:
        return bool(scheduler.config.get("use_flow_sigmas", False))
    prediction = scheduler.config.get("prediction_type")
    if prediction is not None:
        return bool(prediction == "flow_prediction")
    return bool(sigma.max() <= 1)
