"""How far generated pictures are from others of the same seeds."""

import math

import torch


def measure_psnr_db(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio over a whole batch, in dB; infinite for equal pictures.

    ``-10 log10(mean((images - reference) ** 2))``, with a peak of 1.
    """
    error = (images.double() - reference.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def measure_max_abs_err(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference of any two values."""
    return (images.double() - reference.double()).abs().max().item()
