"""Train the classifier by whose features the pictures of the reference pipeline are judged.

Writes ``classifier/`` and ``classifier.checkpoint.pt`` to ``--out``. An interrupted run
continues from its last checkpoint when started again with the same options.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness.options import Count, run_command
from benchmarks.quality.frechet import STATISTICS, gather_statistics, to_unit
from benchmarks.reference.classifier import (
    CONFIG,
    WEIGHTS,
    FashionCNN,
    predict_classes,
    to_channels_last,
)
from benchmarks.reference.data import Split, load_split
from benchmarks.reference.training import Recipe, TrainingOptions

RECIPE = Recipe("classifier", peak=3e-3, warmup_steps=200)
MAX_SHIFT = 2


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Options of this command."""

    COMMAND = "benchmarks.reference.train_classifier"

    steps: Count = 5600
    """Length of the run and its schedule."""
    batch_size: Count = 128
    """Images per step."""


def augment(images: Tensor) -> Tensor:
    """Shift each image by up to `MAX_SHIFT` pixels each way, mirror every second one.

    Args:
        images: ``[N, 1, H, W]`` in [-1, 1]; what is shifted in is black, which is -1.
    """
    num_images, _, height, width = images.shape
    top, left = torch.randint(2 * MAX_SHIFT + 1, (2, num_images, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    is_mirrored = torch.rand(num_images, 1) < 0.5
    columns = torch.where(is_mirrored, columns.flip(1), columns)
    padded = F.pad(images.squeeze(1), (MAX_SHIFT,) * 4, value=-1)
    index = torch.arange(num_images)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(
    data: Split, options: TrainingOptions, *, build: Callable[[], FashionCNN] = FashionCNN
) -> FashionCNN | None:
    """Train a classifier.

    Args:
        data: The training set.
        options: The options of the run.
        build: Builds the untrained classifier.

    Returns:
        The classifier in evaluation mode, or None if the session ended before the run.
    """
    torch.manual_seed(options.seed)
    net = to_channels_last(build().train())

    def compute_loss(index: Tensor) -> Tensor:
        return F.cross_entropy(net(augment(data.images[index])), data.labels[index])

    return net.eval() if RECIPE.fit(net, compute_loss, len(data.images), options) else None


def export(net: FashionCNN, data: Split, test: Split, options: TrainingOptions) -> Path:
    """Write ``classifier/``: weights in float16, accuracy, statistics of the training images.

    The weights of ``net`` are rounded to float16 first, so that all figures are of what is
    written.

    Returns:
        The folder.
    """
    folder = options.out / "classifier"
    folder.mkdir(parents=True, exist_ok=True)
    weights = net.half().state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    net.float()
    save_file(gather_statistics(net, to_unit(data.images)), folder / STATISTICS)
    is_right = predict_classes(net, test.images) == test.labels
    config = {
        "name": type(net).__name__,
        "channels": net.channels,
        "num_features": net.num_features,
        "test_accuracy": round(is_right.double().mean().item(), 4),
        "num_test_images": len(test.images),
        "training": {
            "script": "benchmarks.reference.train_classifier",
            "num_images": len(data.images),
            "steps": options.steps,
            "batch_size": options.batch_size,
            "seed": options.seed,
        },
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Train, write and tell the accuracy."""
    data, test = load_split("train"), load_split("test")
    net = train(data, options)
    if net is None:
        return
    folder = export(net, data, test, options)
    accuracy = json.loads((folder / CONFIG).read_text())["test_accuracy"]
    print(f"wrote {folder}: {100 * accuracy:.2f} % of {len(test.images)} test images right")


if __name__ == "__main__":
    sys.exit(main())
