"""What the figures have in common: colours, sizes, titles, files."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, FAINT, PALE, PAPER = "#1a1a1a", "#636363", "#d9d9d9", "#ffffff"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
SKY, SAND = "#56b4e9", "#e69f00"
"""The colours of Okabe and Ito, which people with any colour vision tell apart."""
DPI = 110
TITLE_POINTS = 15.0
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


def new_figure(title: str, width: float, height: float) -> Figure:
    """An empty figure under a title.

    Args:
        title: The finding in words; it is wrapped.
        width: In inches.
        height: In inches.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    characters = int(width * 72 / (0.62 * TITLE_POINTS))
    text = textwrap.fill(title, characters)
    figure.suptitle(text, x=0.012, ha="left", fontsize=TITLE_POINTS, fontweight="bold")
    return figure


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


def read_captions(page: Path) -> dict[str, str]:
    """Sections of a page of captions by figure; none if there is no page."""
    text = page.read_text() if page.exists() else ""
    sections = (part.partition("\n") for part in f"\n{text}".split("\n## ")[1:])
    return {name.strip(): body.strip() for name, _, body in sections}


def write_captions(captions: dict[str, str], order: tuple[str, ...], page: Path) -> None:
    """Write captions beside those that are on the page from earlier runs."""
    known = read_captions(page) | {
        name: f"![{name}]({name}.png)\n\n{caption}" for name, caption in captions.items()
    }
    sections = [f"## {name}\n\n{known[name]}\n" for name in order if name in known]
    page.write_text("\n".join(["# Figures\n", *sections]))
