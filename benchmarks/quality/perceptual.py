"""How different pictures of the same seeds look: SSIM, and a distance of feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.quality.images import check_pairs, to_fashion
from benchmarks.reference.classifier import FashionCNN

MAX_VALUES = 100_000
"""Values of pictures in one batch: 127 of 28x28, or one of 256x256 in colour."""


def measure_ssim(images: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al., 2004), the mean over pictures; 1 for equal ones.

    The window is a Gaussian of 11x11 with a deviation of 1.5 pixels, reflected at the borders;
    the peak is 1; channels are averaged. float64, in which variances of flat parts stay exact.

    Args:
        images: ``[N, C, H, W]`` in [0, 1], height and width at least 6.
        reference: Of the same seeds, the same shape.

    Raises:
        InputError: The shapes or values are others.
    """
    check_pairs(images, reference)
    total = 0.0
    for batch, other in split_pairs(images, reference):
        similarity = structural_similarity_index_measure(
            batch.double(), other.double(), reduction="sum", data_range=1.0
        )
        assert isinstance(similarity, Tensor)  # a pair only if maps are asked for
        total += similarity.item()
    return total / len(images)


class FeatureDistance:
    """LPIPS-FashionCNN: squared distance of the classifier's feature maps.

    As LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", 2018) without its learned weights: the vector of channels at each position has
    length 1; squared differences are summed over channels, averaged over positions, and summed
    over layers. The network is another, so numbers are not comparable to those of LPIPS.

    Args:
        net: The classifier, in evaluation mode.
    """

    name = "LPIPS-FashionCNN"

    def __init__(self, net: FashionCNN) -> None:
        self._net = net

    @torch.no_grad()
    def measure(self, images: Tensor, reference: Tensor) -> float:
        """The mean distance over pictures; 0 for equal ones, 2 per layer at most.

        Args:
            images: ``[N, 1, 28, 28]`` in [0, 1].
            reference: Of the same seeds, the same shape.

        Raises:
            InputError: The shapes or values are others.
        """
        check_pairs(images, reference)
        total = 0.0
        for batch, other in split_pairs(images, reference):
            pairs = zip(self._unit_maps(batch), self._unit_maps(other), strict=True)
            for map_NCHW, other_NCHW in pairs:
                squared = (map_NCHW - other_NCHW).square().sum(dim=1)
                total += squared.mean(dim=(1, 2)).sum().item()
        return total / len(images)

    def _unit_maps(self, images: Tensor) -> list[Tensor]:
        return [F.normalize(maps, dim=1) for maps in self._net.maps(to_fashion(images))]


def split_pairs(images: Tensor, reference: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both in batches that keep memory small."""
    batch_size = max(1, MAX_VALUES // images[0].numel())
    return list(
        zip(*(torch.split(each, batch_size) for each in (images, reference)), strict=True)
    )
