"""The pictures of contenders that are judged against real ones."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.rows import Row
from benchmarks.harness.groups import Generate, fill_groups
from benchmarks.harness.store import Pieces
from benchmarks.quality.images import to_bytes
from benchmarks.quality.panel import Quality


def fill_gallery(
    bench: Bench,
    contenders: Mapping[str, Contender],
    entrants: Mapping[str, Entrant],
    pieces: Pieces,
    group_size: int,
) -> dict[str, str]:
    """Generate what is not on disk, in batches as large as those that are timed.

    Args:
        bench: Where contenders run.
        contenders: By name.
        entrants: What has been built already, by name.
        pieces: Where pictures belong, uint8.
        group_size: Pictures in a seed group.

    Returns:
        What went wrong, by name.

    Raises:
        InputError: What is on disk is of another run.
    """

    @contextmanager
    def opened(name: str) -> Iterator[Generate]:
        contender = contenders[name]
        entrant = entrants.get(name) or contender.recipe.build(bench, contender.mode)

        def generate(group: int, bar: Any) -> torch.Tensor:
            done = []
            for task, count in bench.protocol.batches(group, group_size, bench.samples):
                images, _ = bench.run(entrant, contender.steps, task)
                done.append(to_bytes(images[:count]))
                bar.update(count)
            return torch.cat(done)

        yield generate

    return fill_groups(pieces, group_size, opened)


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
