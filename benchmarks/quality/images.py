"""What pictures must be before they are judged: float in [0, 1], and grey where asked."""

import torch
from torch import Tensor

from benchmarks.harness.errors import InputError

FASHION_SIDE = 28


def check_images(images: Tensor) -> None:
    """Raise unless these are pictures as ``Task.generate`` returns them.

    Args:
        images: ``[N, C, H, W]``, floating point, N at least 1, values in [0, 1].

    Raises:
        InputError: They are not.
    """
    if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise InputError(
            "expected pictures of floating point and shape [number, channels, height, width], "
            f"found {images.dtype} of shape {list(images.shape)}. Generate them with "
            'output_type="pt".'
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also for NaN, of which no comparison is true
        raise InputError(
            f"expected pictures with values in [0, 1], found {low:.4g} to {high:.4g}. "
            "NaN means that the model overflowed: try another dtype."
        )


def check_pairs(images: Tensor, reference: Tensor) -> None:
    """Raise unless both are pictures, as many and of the same shape.

    Raises:
        InputError: They are not.
    """
    check_images(images)
    check_images(reference)
    if images.shape != reference.shape:
        raise InputError(
            f"pictures of shape {list(images.shape)} cannot be compared with a reference of "
            f"shape {list(reference.shape)}: generate both with the same seeds and size."
        )


def to_fashion(images: Tensor) -> Tensor:
    """Pictures in [0, 1] as FashionCNN takes them.

    Args:
        images: ``[N, 1, 28, 28]``, or ``[N, 3, 28, 28]`` with three equal channels.

    Returns:
        float32 ``[N, 1, 28, 28]`` in [-1, 1].

    Raises:
        InputError: Other values, another size, or colour.
    """
    check_images(images)
    num_channels, *size = images.shape[1:]
    grey = images[:, :1]
    if size != [FASHION_SIDE] * 2 or num_channels not in (1, 3) or (images != grey).any():
        raise InputError(
            "FashionCNN judges grey pictures of 28x28: expected shape [number, 1, 28, 28], or "
            f"three equal channels, found {list(images.shape)}"
            f"{' in colour' if num_channels == 3 else ''}."
        )
    return grey.float() * 2 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Pictures in [0, 1] as a picture file holds them, uint8.

    Raises:
        ValueError: They are not finite.
    """
    if not images.isfinite().all():
        raise ValueError("the pictures hold NaN or infinity; try another --dtype")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """The pictures again, float32 in [0, 1]."""
    return images.float() / 255
