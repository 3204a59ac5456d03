"""The printed table of the ablation, made from rows, and the notes that explain it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from benchmarks.ablation.rows import Row, spread
from benchmarks.harness.tables import NOTHING, first_line, show
from benchmarks.quality.judge import NUM_FLOORS


def format_table(rows: Sequence[Row]) -> str:
    """The table; a failed configuration says so in the place of its speed."""
    headers = list_headers(rows)
    return tabulate(
        [format_row(row) for row in rows],
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *("right",) * (len(headers) - 1)),
    )


def list_headers(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns, with the numbers of pictures."""
    run = rows[0].run
    frechet, lpips = run.get("frechet_name") or "FD", run.get("lpips_name") or "LPIPS"
    images = max(row.quality.images for row in rows)
    group = images // max(1, max(len(row.quality.frechet) for row in rows))
    return (
        "configuration",
        "reuse",
        "cache MB",
        "s/sample",
        "speed (range)",
        "ceiling",
        "PSNR dB",
        "SSIM",
        lpips,
        f"{frechet} n={group}",
        "floor",
        f"pooled n={images}",
        "floor",
        "difference (range)",
        "agreement",
    )


def format_row(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    quality = row.quality
    return (
        row.name,
        show(row.reuse_ratio, ".3f"),
        show(None if row.cache_bytes is None else row.cache_bytes / 1e6, ".2f"),
        show(row.sample_s, ".4f"),
        show_speed(row),
        show(row.ceiling, ".2f"),
        show_psnr(row),
        show(quality.ssim, ".3f"),
        show(quality.lpips, ".4f"),
        show_mean(quality.frechet),
        show_mean(quality.frechet_floors),
        show(quality.pooled_frechet, ".3f"),
        show_mean(quality.pooled_floors),
        show_range(row.frechet_differences),
        show(quality.agreement, ".3f"),
    )


def show_speed(row: Row) -> str:
    """Speed with its range, or that the configuration failed."""
    if row.error is not None:
        return "failed"
    if row.speed_median is None:
        return NOTHING
    return f"{row.speed_median:.2f} ({row.speed_min:.2f}-{row.speed_max:.2f})"


def show_psnr(row: Row) -> str:
    """PSNR; ``inf`` for equal pictures."""
    psnr_db = row.quality.psnr_db
    return "inf" if psnr_db == math.inf else show(psnr_db, ".1f")


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


def format_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and where they were measured."""
    run, base = rows[0].run, rows[0].name
    repeats = max(row.repeats for row in rows)
    frechet = run.get("frechet_name") or "FD"
    notes = [
        f"{run['model']}: {rows[0].steps} steps of {run['scheduler_class']}, guidance "
        f"{run['guidance']:g}, {run['dtype']}, lowering {run['lowering']}; {base} is the "
        f"{'eager' if run['lowering'] == 'eager' else 'compiled'} untransformed model.",
        "s/sample, speed: calls of the denoiser alone, a batch of "
        f"{run['samples']} pictures, interleaved repeats {repeats}; speed against {base}, "
        "repeat by repeat: median (lowest-highest).",
        "ceiling: the same if time were MACs. reuse: share of (step, site). cache MB: slots "
        "of that batch, scales included.",
        f"PSNR, SSIM, {run.get('lpips_name') or 'LPIPS'}: against the pictures of {base} of "
        f"the same seeds and noise{describe_noise(run)}.",
        f"{frechet}: distance from real pictures, mean +- standard deviation over seed "
        f"groups; pooled: of all pictures; floor: of as many real ones, over {NUM_FLOORS} "
        f"draws.{warn_of(frechet)}",
        f"difference: {frechet} less that of {base}, seed group by seed group: mean (lowest "
        "to highest). agreement: share that a classifier takes for the class asked for.",
        f"{rows[0].machine}",
    ]
    failures = [f"{row.name} failed: {first_line(row.error)}" for row in rows if row.error]
    return notes + failures


def describe_noise(run: Mapping[str, Any]) -> str:
    """Why rows of fewer steps have no such numbers, where that is so."""
    if run["scheduler"] != "ddpm":
        return ""
    return " (fewer steps of DDPM draw other noise, so they have none)"


def warn_of(frechet: str) -> str:
    """What a distance must not be taken for."""
    return "" if frechet == "FID" else " It is no FID."
