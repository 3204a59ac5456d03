"""The bars of the speed figure: a row of the ablation each, with its numbers beside it."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.figures.naming import name_row
from benchmarks.figures.rows import Row, describe, is_near, label_quality, speed_of
from benchmarks.harness.plots import (
    BLUE,
    FAINT,
    INK,
    NEAR_DB,
    ORANGE,
    PALE,
    PAPER,
    SKY,
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
CEILING: Any = {"marker": "|", "mew": 3.5, "color": ORANGE, "lw": 0}
RANGE: Any = {"color": INK, "lw": 1.4}


def draw_bars(axes: Axes, timed: Sequence[Row]) -> None:
    """Draw all rows, the first on top."""
    for number, row in enumerate(timed):
        draw_bar(axes, len(timed) - 1 - number, row, is_base=row is timed[0])
    write(axes, len(timed) - 0.35, ("speed (range)", "PSNR"), weight="bold")
    ends = [max(row["speed_max"], row.get("ceiling") or 0) for row in timed]
    axes.axvline(1, color=INK, lw=1.2, ls=":", zorder=3)
    axes.set_yticks([])
    axes.set_xlabel("speed of the denoiser's calls (times that of the baseline)")
    axes.set_xlim(0, 1.02 * max(ends))
    axes.set_ylim(-0.6, len(timed) - 0.4)
    axes.grid(axis="x", color=PALE, lw=0.6, zorder=0)


def draw_bar(axes: Axes, y: int, row: Row, *, is_base: bool) -> None:
    """Draw a row: name, bar with range and ceiling, numbers."""
    speed, low, high = speed_of(row), float(row["speed_min"]), float(row["speed_max"])
    colour, hatch, _ = LOOKS[look_of(row)]
    name_row(axes, (0, y), row["name"], describe(row), axes.get_yaxis_transform())
    axes.barh(y, speed, height=0.6, color=colour, hatch=hatch, edgecolor=PAPER, zorder=2)
    if is_base:
        write(axes, y, (f"{speed:.2f}x", "the reference"))
        return
    axes.errorbar(speed, y, xerr=[[speed - low], [high - speed]], capsize=4, zorder=5, **RANGE)
    if row.get("ceiling"):
        axes.plot([row["ceiling"]], [y], ms=26, zorder=4, **CEILING)
    write(axes, y, (f"{speed:.2f}x ({low:.2f} to {high:.2f})", label_quality(row)))


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
    if row["keep"] is None:
        return "plain"
    if row["psnr_db"] is None:
        return "unknown"
    return "near" if is_near(row) else "far"


def draw_legend(figure: Figure, timed: Sequence[Row]) -> None:
    """Say what colours, lines and marks are."""
    seen = {look_of(row) for row in timed}
    repeats = max(row.get("repeats") or 0 for row in timed)
    whisker = f"lowest and highest of {repeats} repeats"
    ceiling = "ceiling: the speed if time were multiply-accumulates"
    figure.legend(
        handles=[
            *(
                Patch(facecolor=colour, hatch=hatch, edgecolor=PAPER, label=text)
                for look, (colour, hatch, text) in LOOKS.items()
                if look in seen
            ),
            Line2D([], [], ls=":", color=INK, lw=1.2, label="speed of the baseline"),
            Line2D([], [], marker="|", ms=8, label=whisker, **RANGE),
            Line2D([], [], ms=14, label=ceiling, **CEILING),
        ],
        loc="outside lower left",
        ncols=2,
        frameon=False,
    )
