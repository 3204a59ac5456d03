"""How good generated pictures are: against others of the same seeds, and against real ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import name_classes
from benchmarks.quality.frechet import Frechet
from benchmarks.quality.images import check_images, check_pairs, to_fashion
from benchmarks.quality.perceptual import FeatureDistance, measure_ssim
from benchmarks.reference.classifier import FashionCNN, load_classifier, predict_classes
from benchmarks.reference.data import LABELS

NUM_FLOORS = 20
"""Draws of real pictures: three may lie near each other by chance."""


def measure_psnr_db(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio over a whole batch, in dB; infinite for equal pictures.

    ``-10 log10(mean((images - reference) ** 2))``, with a peak of 1.
    """
    error = (images.double() - reference.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def measure_max_abs_err(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference of any two values."""
    return (images.double() - reference.double()).abs().max().item()


@dataclass(frozen=True)
class SameSeed:
    """Distances from pictures of the same seeds.

    Attributes:
        psnr_db: Peak signal-to-noise ratio of all pictures together; higher is nearer.
        ssim: Structural similarity, 1 for equal pictures.
        lpips: The distance that `Judge.lpips_name` names, 0 for equal pictures.
    """

    psnr_db: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True)
class AgainstReal:
    """What pictures are worth by themselves; None for what does not apply.

    Attributes:
        frechet: The distance from real pictures that `Judge.frechet_name` names.
        agreement: Share of pictures that the classifier puts into the class asked for.
        clip_score: Mean agreement with a caption, 0 to 100.
    """

    frechet: float | None
    agreement: float | None
    clip_score: float | None = None


class SeedDistance(Protocol):
    """A distance between pictures of the same seeds."""

    name: str

    def measure(self, images: torch.Tensor, reference: torch.Tensor) -> float:
        """The mean over pictures."""


class RealDistance(Protocol):
    """A distance between the distributions of generated and of real pictures."""

    name: str

    def distance(self, images: torch.Tensor) -> float:
        """From the real ones."""

    def floor(self, num_images: int, seed: int = 0) -> float | None:
        """Of as many real ones, if they are here."""


class CaptionScore(Protocol):
    """How well pictures agree with captions."""

    def score(self, images: torch.Tensor, captions: Sequence[str]) -> float:
        """The mean over pictures."""


@dataclass(frozen=True)
class Judge:
    """Measures pictures ``[N, C, H, W]`` in [0, 1] by all that applies to them.

    Attributes:
        lpips: Perceptual distance between pictures of the same seeds.
        frechet: Distance from real pictures.
        classifier: Tells the class of a picture.
        clip: Scores captions.
        captions: Of each label, for ``clip``.
    """

    lpips: SeedDistance | None = None
    frechet: RealDistance | None = None
    classifier: FashionCNN | None = None
    clip: CaptionScore | None = None
    captions: Mapping[int, str] | None = None

    @property
    def lpips_name(self) -> str | None:
        """What to call `SameSeed.lpips`, with its network."""
        return self.lpips.name if self.lpips else None

    @property
    def frechet_name(self) -> str | None:
        """What to call `AgainstReal.frechet`, with its network."""
        return self.frechet.name if self.frechet else None

    def compare(self, images: torch.Tensor, reference: torch.Tensor) -> SameSeed:
        """Distances from pictures of the same seeds.

        Raises:
            InputError: These are no pictures, or not of one shape.
        """
        check_pairs(images, reference)
        return SameSeed(
            psnr_db=measure_psnr_db(images, reference),
            ssim=measure_ssim(images, reference),
            lpips=self.lpips.measure(images, reference) if self.lpips else None,
        )

    def draw_floors(self, num_images: int) -> tuple[float, ...]:
        """Distances of as many real pictures, drawn again and again; none without them.

        A difference between generated pictures that is below their spread is none.
        """
        return draw_floors(self.frechet, num_images) if self.frechet else ()

    def against_real(self, images: torch.Tensor, labels: Sequence[int]) -> AgainstReal:
        """Quality of pictures by themselves.

        Args:
            images: The pictures, two or more.
            labels: The class that was asked for, of each.

        Raises:
            InputError: These are no pictures, or there are more or fewer labels.
        """
        check_images(images)
        if len(images) != len(labels):
            raise InputError(f"found {len(images)} pictures but {len(labels)} labels")
        frechet, clip = self.frechet, self.clip
        captions = [(self.captions or {}).get(label, "") for label in labels]
        return AgainstReal(
            frechet=frechet.distance(images) if frechet else None,
            agreement=self._measure_agreement(images, labels),
            clip_score=clip.score(images, captions) if clip else None,
        )

    def _measure_agreement(self, images: torch.Tensor, labels: Sequence[int]) -> float | None:
        if self.classifier is None:
            return None
        predicted = predict_classes(self.classifier, to_fashion(images))
        return (predicted == torch.tensor(labels)).double().mean().item()


@cache
def draw_floors(frechet: RealDistance, num_images: int) -> tuple[float, ...]:
    """Distances of real pictures, one for each of `NUM_FLOORS` draws."""
    drawn = (frechet.floor(num_images, seed) for seed in range(NUM_FLOORS))
    return tuple(each for each in drawn if each is not None)


def judge_for(pipe: Any, *, extra: bool = False, real: Path | None = None) -> Judge:
    """The judge for a pipeline's pictures.

    Those of the reference pipeline are judged by FashionCNN; others by PSNR and SSIM alone,
    unless the extra ``metrics`` is asked for.

    Args:
        pipe: A pipeline with ``vae``, ``transformer`` and ``labels``.
        extra: Whether to add LPIPS and CLIP score, of captions made from the names of classes.
        real: Folder of real pictures to measure FID against.

    Raises:
        InputError: The extra or its networks are not there, or do not apply.
    """
    if is_fashion(pipe):
        if extra or real is not None:
            raise InputError(
                "the pictures of this pipeline are judged by FashionCNN and the data it was "
                "trained on: the extra metrics are for others"
            )
        net = load_classifier()
        return Judge(FeatureDistance(net), Frechet.load(net), net)
    if not extra and real is None:
        return Judge()
    # Its networks are large and its packages optional: imported only for those who ask.
    from benchmarks.quality.field_metrics import ClipScore, Fid, Lpips

    captions = {label: f"a photo of a {name}" for label, name in name_classes(pipe).items()}
    return Judge(
        lpips=Lpips() if extra else None,
        frechet=Fid(real) if real is not None else None,
        clip=ClipScore() if extra else None,
        captions=captions,
    )


def is_fashion(pipe: Any) -> bool:
    """Whether a pipeline generates 28x28 grey pictures of Fashion-MNIST's classes."""
    config = pipe.vae.config
    return (config.out_channels, config.sample_size, dict(pipe.labels)) == (
        1,
        28,
        {name: label for label, name in enumerate(LABELS)},
    )
