"""The pictures that are judged: per configuration and seed group, one file on disk."""

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.ablation.configurations import Entry
from benchmarks.ablation.protocol import Protocol
from benchmarks.ablation.store import Piece
from benchmarks.contenders import Contender, Workshop

Pieces = Mapping[str, Sequence[Piece]]
"""Per configuration, a piece for each seed group."""


@dataclass(frozen=True)
class Studio:
    """Generates pictures.

    Attributes:
        pipe: The pipeline.
        workshop: Builds what runs in it.
        protocol: Which pictures.
        group_size: Pictures in a group.
        batch: Pictures in a batch.
    """

    pipe: Any
    workshop: Workshop
    protocol: Protocol
    group_size: int
    batch: int

    def generate_group(self, contender: Contender, group: int, bar: Any) -> torch.Tensor:
        """Pictures ``[group_size, channels, height, width]`` of a group, uint8."""
        done = []
        for start in range(0, self.group_size, self.batch):
            # The last batch is as large as the others, or it would be compiled apart.
            task = self.protocol.task(group, start, self.batch)
            images = task.generate(self.pipe, contender.steps)[: self.group_size - start]
            done.append(to_bytes(images))
            bar.update(len(images))
        return torch.cat(done)


def generate_pictures(
    studio: Studio, entries: Sequence[Entry], pieces: Pieces
) -> dict[str, str]:
    """Generate what is not on disk yet.

    Returns:
        What went wrong, by configuration.

    Raises:
        InputError: What is on disk is of another run.
    """
    missing = {
        name: [group for group, piece in enumerate(groups) if not piece.is_finished()]
        for name, groups in pieces.items()
    }
    total = sum(map(len, pieces.values()))
    left = sum(map(len, missing.values()))
    errors = {}
    with tqdm(
        total=total * studio.group_size,
        initial=(total - left) * studio.group_size,
        unit="image",
    ) as bar:
        for contender in (entry.contender for entry in entries):
            groups = missing[contender.name]
            if not groups:
                continue
            try:
                generate_groups(studio, contender, groups, pieces[contender.name], bar)
            except Exception as error:
                errors[contender.name] = f"{type(error).__name__}: {error}"
                tqdm.write(f"{contender.name} failed:", file=sys.stderr)
                traceback.print_exc()
    return errors


def generate_groups(
    studio: Studio,
    contender: Contender,
    groups: Sequence[int],
    pieces: Sequence[Piece],
    bar: Any,
) -> None:
    """Generate and write some groups of one configuration."""
    studio.pipe.transformer = studio.workshop.build(contender)
    try:
        for group in groups:
            bar.set_description(f"{contender.name}, group {group + 1} of {len(pieces)}")
            start = time.perf_counter()
            images = studio.generate_group(contender, group, bar)
            took_s = time.perf_counter() - start
            pieces[group].write({"images": images}, {"took_s": took_s})
    finally:
        studio.pipe.transformer = studio.workshop.original  # frees what was built


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] as a picture file holds them, uint8.

    Raises:
        ValueError: They are not finite.
    """
    if not images.isfinite().all():
        raise ValueError("the pictures hold NaN or infinity; try another --dtype")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def from_bytes(images: torch.Tensor) -> torch.Tensor:
    """The pictures again, float32 in [0, 1]."""
    return images.float() / 255
