"""The pictures that are judged: per configuration and seed group, one file on disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.ablation.configurations import Entry
from benchmarks.ablation.protocol import Protocol
from benchmarks.harness.contenders import Contender, Workshop
from benchmarks.harness.groups import Generate, fill_groups
from benchmarks.harness.store import Pieces
from benchmarks.quality.images import to_bytes


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
        for task, count in self.protocol.batches(group, self.group_size, self.batch):
            done.append(to_bytes(task.generate(self.pipe, contender.steps)[:count]))
            bar.update(count)
        return torch.cat(done)

    @contextmanager
    def opened(self, contender: Contender) -> Iterator[Generate]:
        """With a configuration in the pipeline."""
        self.pipe.transformer = self.workshop.build(contender)
        try:
            yield partial(self.generate_group, contender)
        finally:
            self.pipe.transformer = self.workshop.original  # frees what was built


def generate_pictures(
    studio: Studio, entries: Sequence[Entry], pieces: Pieces
) -> dict[str, str]:
    """Generate what is not on disk yet.

    Returns:
        What went wrong, by configuration.

    Raises:
        InputError: What is on disk is of another run.
    """
    contenders = {entry.contender.name: entry.contender for entry in entries}
    return fill_groups(pieces, studio.group_size, lambda name: studio.opened(contenders[name]))
