"""FD-FashionCNN: how far the distribution of pictures is from that of real ones.

Gaussians are fitted to the features that FashionCNN has of the pictures and of the 60,000
training images; their Frechet distance is ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))``, with
means m and covariances S. That is the FID of Heusel et al. (2017) with another network, so it
is not an FID and not comparable to one. torchmetrics computes it; all sums are in float64.

The distance falls with the number of pictures even if they are real. So it is printed beside
its floor: the distance of as many real pictures, which neither the classifier nor the Gaussian
of the training images has seen, with the classes in turn as in the benchmarks.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.harness.errors import InputError
from benchmarks.quality.images import to_fashion
from benchmarks.reference.classifier import CLASSIFIER, FashionCNN
from benchmarks.reference.data import Split, load_split

STATISTICS = "statistics.safetensors"
BATCH_SIZE = 200
# torchmetrics' names: sum of features [F], sum of their outer products [F, F], their number.
_REAL = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


class Frechet:
    """The distance of pictures from the real ones.

    Args:
        net: The classifier, in evaluation mode.
        statistics: Of the real pictures, from `gather_statistics`.
        held_out: Real pictures that the statistics are not of; None if there are none here,
            and so no floor.
    """

    name = "FD-FashionCNN"

    def __init__(
        self, net: FashionCNN, statistics: Mapping[str, Tensor], held_out: Split | None = None
    ) -> None:
        self._metric = build_metric(net)
        self._held_out = held_out
        for name in _REAL:
            setattr(self._metric, name, statistics[name])

    @classmethod
    def load(cls, net: FashionCNN, folder: Path = CLASSIFIER) -> "Frechet":
        """With the statistics in the classifier's folder, and the test images if installed.

        Raises:
            InputError: The statistics are missing, damaged, or of another classifier.
        """
        return cls(net, load_statistics(net, folder), load_held_out_maybe())

    def distance(self, images: Tensor) -> float:
        """The distance of pictures ``[N, 1, 28, 28]`` in [0, 1], N at least 2, from real ones.

        Raises:
            InputError: They are too few, or not such pictures.
        """
        if len(images) < 2:
            raise InputError(f"{self.name} needs 2 pictures or more, found {len(images)}")
        self._metric.reset()
        for batch in torch.split(images, BATCH_SIZE):
            self._metric.update(batch, real=False)
        distance: float = self._metric.compute().item()
        return distance

    def floor(self, num_images: int, seed: int = 0) -> float | None:
        """The distance of real pictures, drawn from those held out without replacement.

        The classes take turns: chance in their numbers would raise the floor by a quarter or
        more, and the pictures that it is printed beside have them in turn.

        Args:
            num_images: How many to draw: as many as the pictures that it is printed beside.
            seed: Of the draw.

        Returns:
            The distance, or None if there are not so many real pictures here.
        """
        if self._held_out is None or num_images > len(self._held_out.images):
            return None
        drawn = draw_in_turn(self._held_out.labels, seed)[:num_images]
        return self.distance(to_unit(self._held_out.images[drawn]))


class Features(nn.Module):
    """FashionCNN as torchmetrics wants it: pictures in [0, 1] to features in float64."""

    def __init__(self, net: FashionCNN) -> None:
        super().__init__()
        self.net = net
        self.num_features = net.num_features

    def forward(self, images: Tensor) -> Tensor:
        """The features ``[N, F]`` of pictures ``[N, 1, 28, 28]``."""
        return self.net.features(to_fashion(images)).double()


def build_metric(net: FashionCNN) -> FrechetInceptionDistance:
    """The distance over the classifier, which gets the pictures as they are, not as bytes.

    A reset forgets the pictures under judgement only.
    """
    return FrechetInceptionDistance(Features(net), reset_real_features=False, normalize=True)


def gather_statistics(net: FashionCNN, images: Tensor) -> dict[str, Tensor]:
    """All that the distance needs to know of real pictures ``[N, 1, 28, 28]`` in [0, 1]."""
    metric = build_metric(net)
    for batch in torch.split(images, BATCH_SIZE):
        metric.update(batch, real=True)
    return {name: getattr(metric, name) for name in _REAL}


def load_statistics(net: FashionCNN, folder: Path = CLASSIFIER) -> dict[str, Tensor]:
    """Read what `gather_statistics` returned when the classifier was trained.

    Raises:
        InputError: The file is missing, damaged, or of another classifier.
    """
    path = folder / STATISTICS
    do = "Restore it from the repository, or write one with train_classifier."
    try:
        statistics = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}). {do}") from error
    expected = {name: list(getattr(build_metric(net), name).shape) for name in _REAL}
    found = {name: list(tensor.shape) for name, tensor in statistics.items()}
    if found != expected:
        raise InputError(f"{path} does not fit: expected {expected}, found {found}. {do}")
    return statistics


def draw_in_turn(labels: Tensor, seed: int) -> Tensor:
    """All indices in random order, but so that the classes ``[N]`` take turns."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    is_class = F.one_hot(labels[shuffled])
    turn = (is_class.cumsum(dim=0) * is_class).sum(dim=1)  # the first of its class, the second
    return shuffled[turn.argsort(stable=True)]


def to_unit(images: Tensor) -> Tensor:
    """Images of the data set, which are in [-1, 1], in [0, 1]."""
    return (images + 1) / 2


def load_held_out_maybe() -> Split | None:
    """The 10,000 test images; None, with a word, if they are not installed."""
    try:
        return load_split("test")
    except InputError as error:
        print(f"no floor of {Frechet.name}: {error}", file=sys.stderr)
        return None
