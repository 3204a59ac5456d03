"""Shapes of diagrams: boxes, cylinders, arrows; all lengths in inches."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, FancyBboxPatch, Rectangle

from benchmarks.figures.places import Place
from benchmarks.harness.plots import FAINT, GONE, INK

SOLID = "#444444"
LINE = 0.165
"""Distance of two lines of text."""
LETTER = 0.038
"""Half the width of a letter of a name."""


def draw_box(
    axes: Axes, place: Place, name: str, details: Sequence[str], fill: str | None
) -> None:
    """Draw a box with its name and details."""
    draw_outline(axes, place, fill or "none", SOLID, "-")
    top = place.y + LINE * len(details) / 2
    weight = "bold" if details else "normal"
    write(axes, (place.x, top), name, size=9, weight=weight, colour=INK)
    for number, text in enumerate(details, 1):
        write(axes, (place.x, top - LINE * number), text, size=8, colour=FAINT)


def draw_gone_box(axes: Axes, place: Place, name: str) -> None:
    """Draw the place where a box was, its name struck out."""
    draw_outline(axes, place, "none", GONE, "--")
    top = place.y + LINE / 2
    write(axes, (place.x, top), name, size=9, weight="bold", colour=GONE)
    write(axes, (place.x, top - LINE), "removed", size=8, colour=GONE)
    half = LETTER * len(name)
    axes.plot([place.x - half, place.x + half], [top, top], color=GONE, lw=1.2)


def draw_outline(axes: Axes, place: Place, fill: str, edge: str, style: str) -> None:
    """Draw a rounded rectangle."""
    axes.add_patch(
        FancyBboxPatch(
            (place.left, place.bottom),
            place.width,
            place.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=fill,
            edgecolor=edge,
            linestyle=style,
            linewidth=1.0,
        )
    )


def draw_cylinder(axes: Axes, place: Place, text: str, fill: str | None) -> None:
    """Draw a cylinder; without a fill, the place where one would be."""
    edge, style = (GONE, "--") if fill is None else (SOLID, "-")
    inside = fill or "white"
    low, high, lid = place.y - 0.23, place.y + 0.21, 0.16

    def ellipse(y: float) -> Ellipse:
        return Ellipse(
            (place.x, y), place.width, lid, facecolor=inside, edgecolor=edge, linestyle=style
        )

    axes.add_patch(ellipse(low))
    axes.add_patch(Rectangle((place.left, low), place.width, high - low, facecolor=inside))
    for x in (place.left, place.right):
        axes.plot([x, x], [low, high], color=edge, lw=1.0, ls=style)
    axes.add_patch(ellipse(high))
    write(axes, (place.x, place.y - 0.06), text, size=8.5, colour=INK if fill else GONE)


def write(
    axes: Axes,
    point: tuple[float, float],
    text: str,
    *,
    size: float,
    colour: str,
    weight: str = "normal",
) -> None:
    """Write text around a point."""
    axes.text(
        *point, text, ha="center", va="center", fontsize=size, color=colour, fontweight=weight
    )


def draw_arrow(axes: Axes, way: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw a line through points, with a head at the last one."""
    xs, ys = zip(*way, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=colour, lw=1.2, solid_capstyle="butt")
    axes.annotate(
        "",
        xy=way[-1],
        xytext=way[-2],
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "lw": 1.2,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 9,
        },
    )
