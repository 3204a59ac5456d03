"""FashionCNN: a small classifier of Fashion-MNIST, by whose features pictures are judged.

``train_classifier`` trains one; the folder ``classifier`` holds the shipped one. Shapes below:
N images, C channels, F features.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.harness.errors import InputError
from benchmarks.reference.data import LABELS

CLASSIFIER = Path(__file__).resolve().parent / "classifier"
"""The folder of the shipped classifier."""

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
NUM_STAGES = 3
_DO = "Restore the folder from the repository, or write one with train_classifier."


class FashionCNN(nn.Module):
    """Three convolutions, each followed by pooling to half the size, then two linear layers.

    Args:
        channels: Output channels of each convolution.
        num_features: Length of the feature vector.
    """

    def __init__(self, channels: Sequence[int] = (16, 48, 96), num_features: int = 64) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.num_features = num_features
        num_in = (1, *self.channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(*widths, 3, padding=1), nn.ReLU())
            for widths in zip(num_in, self.channels, strict=True)
        )
        # Normalised after the pooling: a quarter of the work of the usual order.
        self.poolings = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(width)) for width in self.channels
        )
        side = 28 >> NUM_STAGES
        self.embed = nn.Linear(self.channels[-1] * side * side, num_features)
        self.head = nn.Linear(num_features, len(LABELS))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Output of each convolution, ``[N, C, H, W]`` of side 28, 14 and 7.

        Args:
            images: ``[N, 1, 28, 28]`` in [-1, 1].
        """
        maps = [self.convolutions[0](images)]
        for pool, convolve in zip(self.poolings, self.convolutions[1:], strict=False):
            maps.append(convolve(pool(maps[-1])))
        return maps

    def features(self, images: Tensor) -> Tensor:
        """The vectors ``[N, F]`` before the last layer, none of them negative."""
        pooled = self.poolings[-1](self.maps(images)[-1])
        return F.relu(self.embed(pooled.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, 10]`` of the classes."""
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(folder: Path = CLASSIFIER) -> FashionCNN:
    """Load a trained classifier, in evaluation mode and float32.

    Raises:
        InputError: If a file is missing or damaged, or the two do not fit each other.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        net = FashionCNN(config["channels"], config["num_features"])
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"no classifier in {folder} ({reason}). {_DO}") from error
    return to_channels_last(net.eval().requires_grad_(False))


def to_channels_last(net: FashionCNN) -> FashionCNN:
    """The same network with its weights in the order that convolutions on a CPU prefer."""
    converted: FashionCNN = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return converted


@torch.no_grad()
def predict_classes(net: FashionCNN, images: Tensor, batch_size: int = 200) -> Tensor:
    """The most likely class of each image, int64 ``[N]``; images as in `FashionCNN.maps`."""
    return torch.cat([net(batch).argmax(1) for batch in torch.split(images, batch_size)])
