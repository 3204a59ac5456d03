"""What a rule may ask of the rows, and what it answers."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.ablation.configurations import BASELINE
from benchmarks.ablation.rows import Row, spread

MIN_IMAGES, MIN_GROUPS = 2000, 3
"""A Frechet distance of fewer pictures or seed groups decides nothing."""


class Untestable(Exception):
    """A claim that this run cannot decide.

    Args:
        why: The reason.
        measured: What was measured beside it.
    """

    def __init__(self, why: str, measured: str = "-") -> None:
        super().__init__(why)
        self.measured = measured


@dataclass(frozen=True)
class Finding:
    """Whether a claim holds in this run, the figure, and one sentence why."""

    holds: bool
    measured: str
    why: str


@dataclass(frozen=True)
class Difference:
    """Frechet distances of one configuration less those of another, seed group by seed group.

    Attributes:
        values: One per seed group.
        noise: Standard deviation of the baseline's distance over seed groups.
        metric: Name of the distance.
    """

    values: tuple[float, ...]
    noise: float
    metric: str

    @property
    def mean(self) -> float:
        """The mean over seed groups."""
        return statistics.fmean(self.values)

    @property
    def is_worse(self) -> bool:
        """Larger in each seed group, and by more than the baseline's own noise."""
        return min(self.values) > 0 and self.mean > self.noise

    @property
    def verdict(self) -> str:
        """In words, after "is"."""
        if self.is_worse:
            return "farther from real pictures than"
        if max(self.values) < 0 and -self.mean > self.noise:
            return "nearer to real pictures than"
        return "within the noise of seeds of"

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.mean:+.3f} ({min(self.values):+.3f} to "
            f"{max(self.values):+.3f}; baseline's own deviation {self.noise:.3f})"
        )


@dataclass(frozen=True)
class Evidence:
    """The rows of a run, by name."""

    rows: Mapping[str, Row]

    def row(self, name: str) -> Row:
        """The row of a configuration.

        Raises:
            Untestable: There is none, or it failed.
        """
        row = self.rows.get(name)
        if row is None or row.error is not None:
            raise Untestable(f"{name} {'is not in this run' if row is None else 'failed'}.")
        return row

    def value(self, name: str, attribute: str) -> Any:
        """A value of a row.

        Raises:
            Untestable: It was not measured.
        """
        value = getattr(self.row(name), attribute)
        if value is None:
            raise Untestable(f"{attribute} of {name} was not measured.")
        return value

    def frechet_difference(self, name: str, other: str = BASELINE) -> Difference:
        """How much farther from real pictures one configuration is than another.

        Raises:
            Untestable: There is no distance, or of too few pictures to decide anything.
        """
        mine, others = self.row(name), self.row(other)
        metric = mine.run.frechet_name or "Frechet distance"
        if not mine.quality.frechet or not others.quality.frechet:
            raise Untestable(f"no {metric} was measured.", self.describe_psnr(name, other))
        values = tuple(
            a - b for a, b in zip(mine.quality.frechet, others.quality.frechet, strict=True)
        )
        images = min(mine.quality.images, others.quality.images)
        if images < MIN_IMAGES or len(values) < MIN_GROUPS:
            raise Untestable(
                f"{images} pictures in {len(values)} seed groups are too few for {metric}: "
                f"expected {MIN_IMAGES} in {MIN_GROUPS} or more.",
                self.describe_psnr(name, other),
            )
        noise = spread(self.row(BASELINE).quality.frechet)
        assert noise is not None, "as many groups as in all rows"
        return Difference(values, noise, metric)

    def describe_psnr(self, *names: str) -> str:
        """PSNR of some configurations, in words; the baseline has none against itself."""
        found = {n: self.rows[n].quality.psnr_db for n in names if n != BASELINE}
        texts = [f"{name} {psnr:.1f} dB" for name, psnr in found.items() if psnr is not None]
        return f"PSNR: {', '.join(texts)}" if texts else "-"
