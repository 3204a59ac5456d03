"""Figure: how fast the configurations of the ablation are, and how far their pictures."""

import math
import re
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.ablation.rows import Row
from benchmarks.figures.head import READING, describe_reuse, name_row, new_figure, show_psnr
from benchmarks.figures.studio import Studio
from benchmarks.harness.errors import InputError
from benchmarks.harness.plots import (
    BLUE,
    FAINT,
    INK,
    NEAR_DB,
    ORANGE,
    PALE,
    PAPER,
    SKY,
    Drawn,
)
from benchmarks.harness.rows import read_rows

HOW_TO_READ = (
    f"A bar is one way to run the same model: the longer, the faster. {READING} PSNR: how "
    "near the pictures are to the baseline's of the same seeds, the higher, the nearer; from "
    f"{NEAR_DB} dB on differences are hard to see."
)
LOOKS = {
    "near": (BLUE, "", f"reuses attention; pictures near: {NEAR_DB} dB or more"),
    "far": (SKY, "//", f"reuses attention; pictures far: below {NEAR_DB} dB"),
    "unknown": (PALE, "..", "reuses attention; pictures not compared"),
    "plain": (FAINT, "", "untransformed model: baseline, and fewer steps at equal cost"),
}
"""Colour and hatch of a bar, and what they mean."""
SPEED, PSNR = 12, 152
"""Where the columns of numbers begin, in points from the axes."""
speed_of = attrgetter("speed_median")
"""Median speed of a row against the baseline."""


class RowsError(InputError):
    """There are no rows of an ablation to draw."""


def draw(studio: Studio) -> Drawn:
    """Draw the figure.

    Raises:
        RowsError: The ablation has not been run, or not timed.
    """
    timed = read_timed_rows(studio.options.ablation)
    figure = new_figure(make_title(timed), HOW_TO_READ, 12.6, 2.0 + 0.56 * len(timed))
    draw_bars(figure.subplots(), timed)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, markerscale=0.55)
    return Drawn(figure, make_caption(timed))


def read_timed_rows(folder: Path) -> list[Row]:
    """The rows of an ablation that have a time; the first is the baseline.

    Raises:
        RowsError: They are missing or damaged, or nothing was timed.
    """
    path, command = folder / "rows.jsonl", f"python -m benchmarks.ablation --out {folder}"
    if not path.exists():
        raise RowsError(
            f"{path} is not there, so that there are no bars of speed: make it with {command}"
        )
    try:
        rows = read_rows(path, Row)
    except (OSError, ValueError) as error:
        raise RowsError(f"{path} cannot be read ({error}): make it with {command}") from None
    if not rows:
        raise RowsError(f"{path} holds no rows of the ablation: make them with {command}")
    timed = [row for row in rows if row.speed_median is not None]
    if not timed or timed[0] is not rows[0]:
        raise RowsError(
            f"{path} has no times to draw bars of: run {command} without --no-time"
        )
    return timed


# ---- what is drawn --------------------------------------------------------------------------


def draw_bars(axes: Axes, timed: Sequence[Row]) -> None:
    """Draw all rows, the first on top: names, bars with range and ceiling, numbers."""
    places = np.arange(len(timed))
    looks = np.array([look_of(row) for row in timed])
    ranges = [(row.speed_median, row.speed_min, row.speed_max) for row in timed]
    (speeds, lowest, highest) = np.array(ranges).T
    ceilings = np.array([row.ceiling or np.nan for row in timed])
    for look, (colour, hatch, meaning) in LOOKS.items():
        own = looks == look
        if own.any():
            bars: Any = {"color": colour, "hatch": hatch, "edgecolor": PAPER, "zorder": 2}
            axes.barh(places[own], speeds[own], height=0.6, label=meaning, **bars)
    axes.errorbar(
        speeds[1:],
        places[1:],
        xerr=[(speeds - lowest)[1:], (highest - speeds)[1:]],
        label=f"lowest and highest of {max(row.repeats for row in timed)} repeats",
        fmt="none",
        ecolor=INK,
        elinewidth=1.4,
        capsize=4,
        zorder=5,
    )
    meaning = "ceiling: the speed if time were multiply-accumulates"
    marks: Any = {"marker": "|", "ms": 26, "mew": 3.5, "color": ORANGE, "lw": 0, "zorder": 4}
    axes.plot(ceilings[1:], places[1:], label=meaning, **marks)
    axes.axvline(1, color=INK, lw=1.2, ls=":", zorder=3, label="speed of the baseline")
    write(axes, -0.65, ("speed (range)", "PSNR"), weight="bold")
    for y, row in enumerate(timed):
        name_row(axes, (0, y), row.name, describe(row), axes.get_yaxis_transform())
        write(axes, y, label_row(row) if y else (f"{speeds[0]:.2f}x", "the reference"))
    axes.set_yticks([])
    axes.set_xlabel("speed of the denoiser's calls (times that of the baseline)")
    end = max(highest.max(), np.nan_to_num(ceilings).max())
    axes.set(xlim=(0, 1.02 * end), ylim=(len(timed) - 0.4, -0.6))
    axes.grid(axis="x", color=PALE, lw=0.6, zorder=0)


def write(axes: Axes, y: float, texts: tuple[str, str], weight: str = "normal") -> None:
    """Write the two columns of a row."""
    for x, text in zip((SPEED, PSNR), texts, strict=True):
        axes.annotate(
            text,
            (1, y),
            (x, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontweight=weight,
        )


def look_of(row: Row) -> str:
    """How a bar looks."""
    if row.keep is None:
        return "plain"
    if row.quality.psnr_db is None:
        return "unknown"
    return "near" if is_near(row) else "far"


# ---- what is written ------------------------------------------------------------------------


def psnr_of(row: Row) -> float:
    """PSNR in dB; minus infinity where it is unknown."""
    return -math.inf if row.quality.psnr_db is None else row.quality.psnr_db


def is_near(row: Row) -> bool:
    """Whether the pictures are near the baseline's."""
    return psnr_of(row) >= NEAR_DB


def label_row(row: Row) -> tuple[str, str]:
    """Speed with its range; the distance of the pictures, or why there is none."""
    speed = f"{speed_of(row):.2f}x ({row.speed_min:.2f} to {row.speed_max:.2f})"
    if row.quality.psnr_db is not None:
        return speed, show_psnr(row.quality.psnr_db)
    return speed, "none (other noise)" if row.keep is None else "not measured"


def describe(row: Row) -> str:
    """What a configuration does."""
    if row.keep is None:
        return f"untransformed model, {row.steps} steps"
    ages = map(len, re.findall("R+", row.schedule)) if row.schedule else None
    oldest = None if ages is None else max(ages, default=0)
    return ", ".join(describe_reuse(row.keep, row.cache, row.reuse_ratio, oldest))


def make_title(timed: Sequence[Row]) -> str:
    """The finding: the fastest that reuses, and the fastest whose pictures stay near."""
    reusing = [row for row in timed if row.keep is not None]
    if not reusing:
        return "No configuration that reuses attention has been timed"
    best = max(reusing, key=speed_of)
    title = f"Reusing attention gains at most {speed_of(best):.2f}x ({best.name})"
    if best.quality.psnr_db is None:
        return title
    quality = f"(PSNR {show_psnr(psnr_of(best))})"
    if is_near(best):
        return f"{title}, and its pictures stay near the baseline's {quality}"
    near = [row for row in reusing if is_near(row)]
    other = max(near, key=speed_of) if near else max(reusing, key=psnr_of)
    which = f"of those that stay near, {other.name} is the fastest"
    return (
        f"{title}, but with pictures far from the baseline's {quality}; "
        f"{which if near else f'{other.name} comes nearest'} "
        f"({speed_of(other):.2f}x, {show_psnr(psnr_of(other))})"
    )


def make_caption(timed: Sequence[Row]) -> str:
    """The paragraph below the figure."""
    run, machine = timed[0].run, timed[0].machine
    return (
        f"Speed of the ablation's configurations on {run.model} ({machine.device}: "
        f"{machine.processor}, {machine.cores} cores, lowering {run.lowering}, guidance "
        f"{run.guidance}). A bar is the median over {max(row.repeats for row in timed)} "
        "interleaved repeats of the time of the baseline by that of the configuration; the "
        "baseline is the untransformed model, compiled as the others are. PSNR: peak "
        "signal-to-noise ratio of the pictures against the baseline's of the same seeds. "
        "Fewer steps draw other noise under DDPM, so that their pictures have no such number."
    )
