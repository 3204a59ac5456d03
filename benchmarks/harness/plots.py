"""What the figures have in common: colours, sizes, files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dqar_fx import Action

INK, FAINT, GONE, PALE, PAPER = "#1a1a1a", "#636363", "#858585", "#d9d9d9", "#ffffff"
BLUE, ORANGE = "#0072b2", "#d55e00"
SKY, SAND = "#56b4e9", "#e69f00"
"""The colours of Okabe and Ito, which people with any colour vision tell apart."""
ACTION_COLOURS = {Action.COMPUTE: "#e8e8e8", Action.STORE: SAND, Action.REUSE: BLUE}
ACTION_INKS = {Action.COMPUTE: INK, Action.STORE: INK, Action.REUSE: PAPER}
"""What is written on these colours."""
NEAR_DB = 30
"""PSNR from which on pictures are called near: usual for lossy compression is 30 to 50 dB."""
DPI = 110
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "dqar_fx",  # or names inside the file would differ from run to run
}


@dataclass(frozen=True)
class Drawn:
    """A finished figure.

    Attributes:
        figure: The picture.
        caption: One paragraph: what is shown, how it was measured, how to read it.
    """

    figure: Figure
    caption: str


def styled() -> Any:
    """A context in which figures are made and written."""
    return matplotlib.rc_context(STYLE)


def set_titles(axes: Axes, title: str, detail: str) -> None:
    """A panel's title in bold, and a line of detail below."""
    axes.set_title(title, fontsize=10.5, fontweight="bold", pad=19)
    axes.text(0, 1.03, detail, transform=axes.transAxes, va="bottom", fontsize=10, color=FAINT)


def hide_frame(axes: Axes) -> None:
    """Leave nothing of the axes but what is drawn in them."""
    axes.set_axis_off()


def write_figure(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes for the same figure."""
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    drawn.figure.savefig(paths[0], dpi=DPI)
    drawn.figure.set_layout_engine("none")  # both files have the places found for the first
    drawn.figure.savefig(paths[1], metadata={"Date": None})
    return paths
