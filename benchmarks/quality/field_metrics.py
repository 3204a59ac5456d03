"""The field's own metrics, for pipelines of real pictures: LPIPS, FID and CLIP score.

They need the extra ``metrics``, and a connection when they are first used: torchmetrics
fetches the weights. Pictures are ``[N, C, H, W]`` in [0, 1] with one channel or three.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchmetrics.multimodal.clip_score import CLIPScore

from benchmarks.harness.errors import InputError
from benchmarks.quality.images import check_images, check_pairs
from benchmarks.quality.perceptual import split_pairs

BATCH_SIZE = 8
CLIP = "openai/clip-vit-base-patch16"
SUFFIXES = frozenset((".jpeg", ".jpg", ".png", ".webp"))


class Lpips:
    """LPIPS (Zhang et al., 2018) between pictures of the same seeds."""

    name = "LPIPS-AlexNet"

    def __init__(self) -> None:
        with needs_extra(self.name):
            self._metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)

    def measure(self, images: Tensor, reference: Tensor) -> float:
        """The mean distance over pictures."""
        check_pairs(images, reference)
        self._metric.reset()
        for batch, other in split_pairs(to_colour(images), to_colour(reference)):
            self._metric.update(batch.float(), other.float())
        distance: float = self._metric.compute().item()
        return distance


class Fid:
    """FID (Heusel et al., 2017) of pictures against the files in a folder.

    Both go to Inception as rounded bytes. There is no floor: the folder is all that is real.

    Args:
        folder: Of PNG, JPEG or WebP files, of the pictures' size; subfolders are not read.
    """

    name = "FID"

    def __init__(self, folder: Path) -> None:
        files = find_pictures(folder)
        with needs_extra(self.name):
            self._metric = FrechetInceptionDistance(reset_real_features=False)
        for file in files:
            self._metric.update(read_picture(file), real=True)

    def distance(self, images: Tensor) -> float:
        """The distance of two pictures or more from the files."""
        if len(images) < 2:
            raise InputError(f"{self.name} needs 2 pictures or more, found {len(images)}")
        self._metric.reset()
        for batch in torch.split(to_bytes(images), BATCH_SIZE):
            self._metric.update(batch, real=False)
        distance: float = self._metric.compute().item()
        return distance

    def floor(self, num_images: int, seed: int = 0) -> None:
        """None: a part of the folder is not independent of the whole."""


class ClipScore:
    """CLIP score (Hessel et al., 2021), 0 to 100: do pictures show what their captions say?"""

    def __init__(self) -> None:
        with needs_extra("the CLIP score"):
            self._metric = CLIPScore(load_clip)

    def score(self, images: Tensor, captions: Sequence[str]) -> float:
        """The mean over pictures, each with its own caption."""
        if len(images) != len(captions):
            raise InputError(f"found {len(images)} pictures but {len(captions)} captions")
        self._metric.reset()
        for start, batch in enumerate(torch.split(to_bytes(images), BATCH_SIZE)):
            first = start * BATCH_SIZE
            self._metric.update(batch, list(captions[first : first + BATCH_SIZE]))
        score: float = self._metric.compute().item()
        return score


class TensorClip(nn.Module):
    """A CLIP whose features are tensors, which torchmetrics 1.9 expects.

    Since version 5 transformers returns them inside of an output.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.config = clip.config

    def get_image_features(self, *args: Any) -> Any:
        """Features ``[N, F]`` of pictures."""
        return take_tensor(self.clip.get_image_features(*args))

    def get_text_features(self, *args: Any) -> Any:
        """Features ``[N, F]`` of captions."""
        return take_tensor(self.clip.get_text_features(*args))


def take_tensor(features: Any) -> Any:
    """The tensor in an output of transformers 5, or what transformers 4 returned."""
    return getattr(features, "pooler_output", features)


def load_clip() -> tuple[Any, Any]:
    """CLIP and the processor of its inputs."""
    from transformers import CLIPModel, CLIPProcessor

    clip = CLIPModel.from_pretrained(CLIP).eval()
    return TensorClip(clip), CLIPProcessor.from_pretrained(CLIP)


@contextmanager
def needs_extra(what: str) -> Iterator[None]:
    """Say which extra is missing, or that the networks could not be fetched.

    Raises:
        InputError: One of both.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f'{what} needs the extra "metrics": pip install "dqar_fx[metrics]" ({error})'
        ) from error
    except OSError as error:
        raise InputError(f"the network of {what} could not be fetched: {error}") from error


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, by name.

    Raises:
        InputError: There are fewer than two.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise InputError(
            f"{folder} holds {len(files)} pictures: FID needs a folder with thousands of real "
            f"ones ({', '.join(sorted(SUFFIXES))})"
        )
    return files


def read_picture(path: Path) -> Tensor:
    """A file as bytes ``[1, 3, H, W]``."""
    try:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def to_colour(images: Tensor) -> Tensor:
    """Pictures with three channels.

    Raises:
        InputError: They have neither one nor three, or are no pictures.
    """
    check_images(images)
    if images.shape[1] not in (1, 3):
        raise InputError(f"expected 1 channel or 3, found {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def to_bytes(images: Tensor) -> Tensor:
    """Pictures as bytes ``[N, 3, H, W]``, rounded; torchmetrics itself would round down."""
    return (to_colour(images) * 255).round().byte()
