"""The pictures of contenders that are judged against real ones."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.rows import Row
from benchmarks.harness.groups import Generate, fill_groups
from benchmarks.harness.store import Pieces
from benchmarks.quality.images import to_bytes
from benchmarks.quality.panel import Quality


@dataclass(frozen=True)
class Gallery:
    """Generates pictures.

    Attributes:
        bench: Where contenders run.
        contenders: By name.
        entrants: What has been built already, by name.
        group_size: Pictures in a seed group.
    """

    bench: Bench
    contenders: Mapping[str, Contender]
    entrants: Mapping[str, Entrant]
    group_size: int

    def fill(self, pieces: Pieces) -> dict[str, str]:
        """Generate what is not on disk; what went wrong, by name.

        Raises:
            InputError: What is on disk is of another run.
        """
        return fill_groups(pieces, self.group_size, self.opened)

    @contextmanager
    def opened(self, name: str) -> Iterator[Generate]:
        """With what generates the pictures of a contender."""
        contender = self.contenders[name]
        entrant = self.entrants.get(name)
        if entrant is None:
            entrant = contender.recipe.build(self.bench, contender.mode)
        yield partial(self.generate_group, contender, entrant)

    def generate_group(
        self, contender: Contender, entrant: Entrant, group: int, bar: Any
    ) -> torch.Tensor:
        """Pictures of a group, uint8, in batches as large as those that are timed."""
        done = []
        for task, count in self.bench.protocol.batches(
            group, self.group_size, self.bench.samples
        ):
            images, _ = self.bench.run(entrant, contender.steps, task)
            done.append(to_bytes(images[:count]))
            bar.update(count)
        return torch.cat(done)


def add_quality(
    rows: Sequence[Row], qualities: Mapping[str, Quality], errors: Mapping[str, str]
) -> list[Any]:
    """The rows, with what became of those that were judged; the first is the base."""
    base = qualities.get(rows[0].name, Quality()).frechet
    judged = []
    for row in rows:
        own = qualities.get(row.name, Quality()).frechet
        differences = tuple(each - full for each, full in zip(own, base, strict=False))
        judged.append(
            replace(
                row,
                judged=qualities.get(row.name),
                error=row.error or errors.get(row.name),
                frechet_differences=differences,
            )
        )
    return judged
