"""Fashion-MNIST from the files of the Debian package ``dataset-fashion-mnist`` (MIT).

The files are in the idx format: two zero bytes, a type code (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the values. Plain or gzipped.
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
from torch import Tensor

from benchmarks.harness.errors import InputError

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
_UNSIGNED_BYTE = 8
_HOW_TO_GET = (
    "Install the Debian package dataset-fashion-mnist, or set the environment variable "
    f"{FOLDER_VARIABLE} to a folder that holds the four idx files."
)


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
    content = _read_bytes(path)
    expected_start = bytes((0, 0, _UNSIGNED_BYTE, num_dims))
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


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be decompressed ({error}). {_HOW_TO_GET}") from error
