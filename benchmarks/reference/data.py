"""What is trained on: Fashion-MNIST, and its latents.

Fashion-MNIST is read from the files of the Debian package ``dataset-fashion-mnist`` (MIT), in
the idx format: two zero bytes, a type code (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the values. Plain or gzipped.

The latents are what the VAE's training hands to the transformer's: a safetensors file with
``moments`` float32 (N, 2C, H, W), the means and log variances; ``labels`` int64 (N,); and, as
text, the VAE's scaling factor.
"""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness.errors import InputError
from benchmarks.reference.checkpoint import replace_atomically

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FOLDER_VARIABLE = "FASHION_MNIST"
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PREFIXES = {"train": "train", "test": "t10k"}
_HOW_TO_GET = (
    "Install the Debian package dataset-fashion-mnist, or set the environment variable "
    f"{FOLDER_VARIABLE} to a folder that holds the four idx files."
)
FILE_NAME = "latents.safetensors"
_HOW_TO_TRAIN = "Run python -m benchmarks.reference.train_vae with the same --out first."


@dataclass(frozen=True)
class Split:
    """Images as float32 (N, 1, H, W) in [-1, 1], labels as int64 (N,)."""

    images: Tensor
    labels: Tensor


def load_split(split: Literal["train", "test"], folder: Path | None = None) -> Split:
    """Load one split of Fashion-MNIST.

    Args:
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000).
        folder: Where the idx files are. Default: the environment variable ``FASHION_MNIST``,
            else the folder of the Debian package.

    Returns:
        The images, scaled to [-1, 1], and their labels.

    Raises:
        InputError: If a file is missing, damaged, or disagrees with its neighbour.
    """
    folder = folder or Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    prefix = _PREFIXES[split]
    images_path = find_file(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = find_file(folder, f"{prefix}-labels-idx1-ubyte")
    images = read_idx(images_path, num_dims=3)
    labels = read_idx(labels_path, num_dims=1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} "
            f"labels: they are not of one split. {_HOW_TO_GET}"
        )
    return Split(images.unsqueeze(1).float() / 127.5 - 1, labels.long())


def find_file(folder: Path, name: str) -> Path:
    """Return the path of ``name`` or ``name.gz`` in the folder, the gzipped file first."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise InputError(f"no file {name}.gz (or {name}) in {folder}. {_HOW_TO_GET}")


def read_idx(path: Path, *, num_dims: int) -> Tensor:
    """Read one idx file of unsigned bytes into a uint8 tensor of ``num_dims`` dimensions."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path} cannot be decompressed ({error}). {_HOW_TO_GET}"
            ) from error
    expected_start = bytes((0, 0, 8, num_dims))  # 8: unsigned bytes
    header = 4 + 4 * num_dims
    if content[:4] != expected_start or len(content) < header:
        raise InputError(
            f"{path} is not an idx file of {num_dims}-d unsigned bytes: expected a header of "
            f"{header} bytes that starts with {expected_start.hex()}, found "
            f"{content[:4].hex() or 'nothing'} in {len(content)} bytes. {_HOW_TO_GET}"
        )
    shape = struct.unpack(f">{num_dims}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise InputError(
            f"{path} is damaged: its header promises {math.prod(shape)} values of shape "
            f"{shape}, found {len(content) - header}. {_HOW_TO_GET}"
        )
    # A bytearray is writable: PyTorch warns about tensors over read-only memory.
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return values[header:].reshape(shape)


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
        raise InputError(f"no latents at {path}. {_HOW_TO_TRAIN}")
    try:
        with safe_open(path, framework="pt") as file:
            moments, labels = (file.get_tensor(name) for name in ("moments", "labels"))
            latents = Latents(
                moments, labels, float((file.metadata() or {})["scaling_factor"])
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not a file of latents ({error}). {_HOW_TO_TRAIN}"
        ) from error
    found = (tuple(latents.moments.shape), tuple(latents.labels.shape))
    num_images = len(latents.labels)
    expected = ((num_images, 2 * num_channels, size, size), (num_images,))
    if found != expected or num_images == 0:
        raise InputError(
            f"latents {path} do not fit the transformer: expected at least one image, with "
            f"moments and labels of shapes {expected[0]} and {expected[1]}, found {found[0]} "
            f"and {found[1]}. {_HOW_TO_TRAIN}"
        )
    return latents
