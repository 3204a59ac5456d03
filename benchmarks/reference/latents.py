"""The encoded training set: what the VAE's training hands to the transformer's.

A safetensors file: ``moments`` float32 (N, 2C, H, W), the means and log variances of the
latents; ``labels`` int64 (N,); and, as text, the VAE's scaling factor.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness.errors import InputError
from benchmarks.reference.checkpoint import replace_atomically

FILE_NAME = "latents.safetensors"
_DO = "Run python -m benchmarks.reference.train_vae with the same --out first."


@dataclass(frozen=True)
class Latents:
    """Latents as distributions, their labels, and the factor that gives them unit scale."""

    moments: Tensor
    labels: Tensor
    scaling_factor: float

    def draw(self, index: Tensor) -> Tensor:
        """Draw scaled latents, one for each index."""
        mean, log_variance = self.moments[index].chunk(2, dim=1)
        sample = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return sample * self.scaling_factor


def save_latents(path: Path, latents: Latents) -> None:
    """Write the file, atomically."""
    tensors = {"moments": latents.moments.contiguous(), "labels": latents.labels}
    with replace_atomically(path) as temporary:
        save_file(tensors, temporary, {"scaling_factor": repr(latents.scaling_factor)})


def load_latents(path: Path, *, num_channels: int, size: int) -> Latents:
    """Read the file and check that it fits a transformer.

    Args:
        path: The safetensors file.
        num_channels: Latent channels that the transformer expects.
        size: Height and width that it expects.

    Returns:
        The latents.

    Raises:
        InputError: If the file is missing, damaged or of other shapes.
    """
    if not path.is_file():
        raise InputError(f"no latents at {path}. {_DO}")
    try:
        latents = _read(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a file of latents ({error}). {_DO}") from error
    found = (tuple(latents.moments.shape), tuple(latents.labels.shape))
    num_images = len(latents.labels)
    expected = ((num_images, 2 * num_channels, size, size), (num_images,))
    if found != expected or num_images == 0:
        raise InputError(
            f"latents {path} do not fit the transformer: expected at least one image, with "
            f"moments and labels of shapes {expected[0]} and {expected[1]}, found {found[0]} "
            f"and {found[1]}. {_DO}"
        )
    return latents


def _read(path: Path) -> Latents:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        return Latents(
            moments=file.get_tensor("moments"),
            labels=file.get_tensor("labels"),
            scaling_factor=float(metadata["scaling_factor"]),
        )
