"""Which rows are judged against real pictures, and the pictures for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.harness.errors import InputError
from benchmarks.harness.groups import Generate, fill_groups
from benchmarks.harness.store import Pieces
from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import Contender, Entrant
from benchmarks.pareto.options import Options
from benchmarks.pareto.rows import Row
from benchmarks.quality.images import to_bytes
from benchmarks.quality.judge import Judge
from benchmarks.quality.panel import Panel, Quality


def check_names(contenders: Sequence[Contender], options: Options) -> None:
    """Raise for a row to be judged that is none.

    Raises:
        InputError: There is one.
    """
    names = [each.name for each in contenders]
    for name in options.judge or ():
        if name not in names:
            near = sorted(names, key=lambda known: (name not in known, known))[:3]
            raise InputError(
                f"--judge: there is no row {name!r} in this run; there are "
                f"{', '.join(map(repr, near))} and {max(0, len(names) - 3)} more"
            )


def choose_judged(rows: Sequence[Row], options: Options) -> list[str]:
    """Names of the rows to judge: the base, and those asked for or nearest to the targets."""
    if not options.images or options.judge == ():
        return []
    if options.judge is not None:
        return list(dict.fromkeys((rows[0].name, *options.judge)))
    families = dict.fromkeys(row.family for row in rows if row.family.kind != "base")
    chosen = [rows[0].name]
    for family in families:
        placed = [row for row in rows if row.family == family and is_eligible(row)]
        chosen += [find_nearest(placed, target).name for target in options.targets if placed]
    return list(dict.fromkeys(chosen))


def is_eligible(row: Row) -> bool:
    """Whether a row runs, and does what it is for."""
    return row.is_placed and row.note is None


def find_nearest(rows: Sequence[Row], speed: float) -> Row:
    """The row whose measured speed is nearest; of equally near ones the better."""
    return min(rows, key=lambda row: (abs((row.speed_median or 0) - speed), -quality_of(row)))


def quality_of(row: Row) -> float:
    """PSNR in dB, minus infinity where there is none."""
    return -float("inf") if row.psnr_db is None else row.psnr_db


@dataclass(frozen=True)
class Gallery:
    """Generates and judges pictures.

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

    def judge(self, judge: Judge, pieces: Pieces, reference: str) -> dict[str, Quality]:
        """The quality of each row whose pictures are complete."""
        labels = self.bench.protocol.task(0, 0, max(1, self.group_size)).labels
        return Panel(judge, labels, reference, set(pieces)).judge_pieces(pieces)


def add_quality(
    rows: Sequence[Row], qualities: Mapping[str, Quality], errors: Mapping[str, str]
) -> list[Row]:
    """The rows, with what became of those that were judged; the first is the base."""
    base = qualities.get(rows[0].name, Quality()).frechet
    return [
        replace(
            row,
            quality=qualities.get(row.name),
            error=row.error or errors.get(row.name),
            frechet_differences=tuple(
                own - full
                for own, full in zip(
                    qualities.get(row.name, Quality()).frechet, base, strict=False
                )
            ),
        )
        for row in rows
    ]
