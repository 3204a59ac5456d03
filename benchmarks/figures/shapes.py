"""Shapes of diagrams: outlines, arrows, text; all lengths in inches."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.transforms import Bbox

SOLID = "#444444"
Point = tuple[float, float]


def place(x: float, y: float, width: float, height: float) -> Bbox:
    """A rectangle around a point."""
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def middle(box: Bbox) -> Point:
    """The centre of a rectangle."""
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def draw_outline(axes: Axes, box: Bbox, fill: str, edge: str, style: str) -> None:
    """Draw a rounded rectangle."""
    looks: Any = {"facecolor": fill, "edgecolor": edge, "linestyle": style, "linewidth": 1.0}
    rounded = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch(box.p0, box.width, box.height, boxstyle=rounded, **looks))


def draw_arrow(axes: Axes, way: Sequence[Point], colour: str) -> None:
    """Draw a line through points, with a head at the last one."""
    axes.add_patch(
        FancyArrowPatch(
            path=Path(way),
            arrowstyle="-|>",
            mutation_scale=9,
            color=colour,
            linewidth=1.2,
            fill=False,
            joinstyle="miter",
        )
    )


def write(axes: Axes, point: Point, text: str, size: float, colour: str, **more: Any) -> None:
    """Write text around a point; ``more`` is as of `Axes.text`."""
    centred = {"ha": "center", "va": "center"}
    axes.text(*point, text, fontsize=size, color=colour, **centred | more)
