"""The tables of the ablation, made from rows, and the notes that explain them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.ablation.configurations import (
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    MENDED_KV,
    RIVALLED,
    SCHEDULING,
    cost_of,
)
from benchmarks.ablation.rows import Row, Setting, spread
from benchmarks.harness.tables import (
    NOTHING,
    Column,
    list_failures,
    show,
    show_megabytes,
    show_speed,
)
from benchmarks.quality.judge import NUM_FLOORS

PAIRS = (
    ("INT8 against FP16", FULL, SCHEDULING),
    ("INT8 against FP16", MENDED, MENDED_FP16),
    ("K/V against outputs", KV, SCHEDULING),
    ("K/V against outputs", MENDED_KV, MENDED_FP16),
)
"""What differs, and the names of two rows with the same branch table."""


def show_mean(values: Sequence[float]) -> str:
    """Mean and standard deviation over seed groups."""
    if not values:
        return NOTHING
    deviation = spread(values)
    mean = f"{statistics.fmean(values):.3f}"
    return mean if deviation is None else f"{mean} +- {deviation:.3f}"


def show_range(values: Sequence[float]) -> str:
    """Mean with the lowest and the highest, signed."""
    if not values:
        return NOTHING
    return f"{statistics.fmean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def list_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of the table, some named with numbers of pictures."""
    run, images = rows[0].run, max(row.quality.images for row in rows)
    group = images // max(1, max(len(row.quality.frechet) for row in rows))
    return [
        Column("configuration", "name"),
        Column("reuse", "reuse_ratio", ".3f"),
        Column("cache MB", "cache_bytes", show_megabytes()),
        Column("s/sample", "sample_s", ".4f"),
        Column("speed (range)", show_speed),
        Column("ceiling", "ceiling", ".2f"),
        Column("PSNR dB", "quality.psnr_db", ".1f"),
        Column("SSIM", "quality.ssim", ".3f"),
        Column(run.lpips, "quality.lpips", ".4f"),
        Column(f"{run.frechet} n={group}", "quality.frechet", show_mean),
        Column("floor", "quality.frechet_floors", show_mean),
        Column(f"pooled n={images}", "quality.pooled_frechet", ".3f"),
        Column("floor", "quality.pooled_floors", show_mean),
        Column("difference (range)", "frechet_differences", show_range),
        Column("agreement", "quality.agreement", ".3f"),
    ]


@dataclass(frozen=True)
class Pair:
    """Two rows that differ in one thing: the format, what is kept, or reuse at equal cost."""

    what: str
    row: Row
    other: Row

    def find_differences(self) -> list[float]:
        """The one's Frechet distance less the other's, per seed group."""
        frechets = zip(self.row.quality.frechet, self.other.quality.frechet, strict=False)
        return [mine - others for mine, others in frechets]

    def find_ratio(self, name: str) -> float | None:
        """A number of the one by that of the other, if there are both."""
        value, other = getattr(self.row, name), getattr(self.other, name)
        return value / other if value is not None and other else None

    def show_psnr(self) -> str:
        """PSNR of both."""
        return " / ".join(show(row.quality.psnr_db, ".1f") for row in (self.row, self.other))


def find_pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    """The pairs whose rows are both there, and reuse with fewer steps of equal cost."""
    by_name = {row.name: row for row in rows}
    for what, name, other in PAIRS:
        if name in by_name and other in by_name:
            yield Pair(f"{what}: {name}", by_name[name], by_name[other])
    for row in rows:
        for name in RIVALLED:
            if name in by_name and row.name.endswith(cost_of(name)):
                yield Pair(f"{name} against {row.steps} steps", by_name[name], row)


def list_pair_columns(run: Setting) -> list[Column]:
    """The columns of the table of pairs: differences, and ratios of the one by the other."""
    return [
        Column("pair", "what"),
        Column(f"{run.frechet} difference (range)", Pair.find_differences, show_range),
        Column("PSNR dB", Pair.show_psnr),
        Column("bytes", lambda pair: pair.find_ratio("cache_bytes"), ".3f"),
        Column("speed", lambda pair: pair.find_ratio("speed_median"), ".3f"),
        Column("MACs", lambda pair: pair.find_ratio("macs"), ".3f"),
    ]


def list_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, where they were measured, and what failed."""
    run, base = rows[0].run, rows[0].name
    lowered = "eager" if run.lowering == "eager" else "compiled"
    other_noise = " (fewer steps of DDPM draw other noise, so they have none)"
    return [
        f"{run.model}: {rows[0].steps} steps of {run.scheduler_class}, guidance "
        f"{run.guidance:g}, {run.dtype}, lowering {run.lowering}; {base} is the {lowered} "
        "untransformed model.",
        f"s/sample, speed: calls of the denoiser alone, a batch of {run.samples} pictures, "
        f"interleaved repeats {max(row.repeats for row in rows)}; speed against {base}, "
        "repeat by repeat: median (lowest-highest).",
        "ceiling: the same if time were MACs. reuse: share of (step, site). cache MB: slots "
        "of that batch, scales included.",
        f"PSNR, SSIM, {run.lpips}: against the pictures of {base} of the same seeds and "
        f"noise{other_noise if run.scheduler == 'ddpm' else ''}.",
        f"{run.frechet}: distance from real pictures, mean +- standard deviation over seed "
        f"groups; pooled: of all pictures; floor: of as many real ones, over {NUM_FLOORS} "
        f"draws.{'' if run.frechet == 'FID' else ' It is no FID.'}",
        f"difference: {run.frechet} less that of {base}, seed group by seed group: mean "
        "(lowest to highest). agreement: share that a classifier takes for the class asked "
        "for.",
        f"{rows[0].machine}",
        *list_failures(rows),
    ]
