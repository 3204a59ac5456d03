"""What figures have in common: a head in words, and names of configurations."""

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.harness.plots import DPI, FAINT

PAD, SPACING = 0.14, 1.3
"""Around the head, in inches; of its lines, in heights of a line."""
KEPT = {"output": "outputs", "kv": "keys and values"}
READING = (
    "Below a name: what is kept of each attention and in which numbers, the share of "
    "attentions that reuse it instead of computing, and how old it gets."
)


def new_figure(title: str, reading: str, width: float, height: float) -> Figure:
    """An empty figure under its head.

    Args:
        title: What is to be seen, in words; it is wrapped.
        reading: How to read it, for who sees nothing but the picture; it is wrapped.
        width: In inches.
        height: Below the head, in inches.
    """
    figure, top = Figure(dpi=DPI), PAD
    # Size and weight of each paragraph, and the mean width of a letter in sizes.
    for text, points, weight, letter in (
        (title, 15, "bold", 0.62),
        (reading, 11, "normal", 0.55),
    ):
        lines = textwrap.wrap(text, int((width - 2 * PAD) * 72 / (letter * points)))
        figure.text(
            PAD / width,
            top,  # in inches from above, until the height is known
            "\n".join(lines),
            va="top",
            fontsize=points,
            fontweight=weight,
            linespacing=SPACING,
        )
        top += len(lines) * SPACING * points / 72 + PAD
    total = height + top - PAD
    figure.set_size_inches(width, total)
    for paragraph in figure.texts:
        paragraph.set_y(1 - paragraph.get_position()[1] / total)
    rect = (0, 0, 1, height / total)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, rect=rect))
    return figure


def describe_reuse(
    keep: str, cache: str | None, ratio: float | None, oldest: int | None
) -> list[str]:
    """What a configuration does, in parts.

    Args:
        keep: What is kept of each attention.
        cache: The format in which it is kept.
        ratio: Share of cells that reuse; None where it is unknown.
        oldest: Age of the oldest output that is reused, in steps; None where it is unknown.
    """
    parts = [f"{KEPT.get(keep, keep)} in {cache}"]
    parts += [] if ratio is None else [f"{ratio:.0%} reused"]
    unit = "step" if oldest == 1 else "steps"
    parts += [] if oldest is None else [f"up to {oldest} {unit} old"]
    return parts


def show_psnr(psnr_db: float) -> str:
    """PSNR with its unit."""
    return "equal" if math.isinf(psnr_db) else f"{psnr_db:.1f} dB"


def name_row(
    axes: Axes, point: tuple[float, float], name: str, detail: str, place: Any
) -> None:
    """Write a bold name, and its detail below, to the left of a point in some coordinates."""
    options: Any = {"xycoords": place, "textcoords": "offset points", "ha": "right"}
    up = 6.5 * (detail.count("\n") + 1)
    axes.annotate(name, point, (-8, up), va="center", fontweight="bold", **options)
    small: Any = {"fontsize": 9.5, "color": FAINT}
    axes.annotate(detail, point, (-8, up - 7), va="top", **small, **options)
