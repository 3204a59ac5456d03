"""The top of the mismatch figure: what is kept, and what is computed anew, in either way."""

from matplotlib.axes import Axes

from benchmarks.figures.places import Place
from benchmarks.figures.shapes import SOLID, draw_arrow, draw_outline, write
from benchmarks.harness.plots import FAINT, GONE, INK, hide_frame

WIDTH, SMALL, ROW = 1.4, 0.3, 0.4
"""Width and height of a box, and distance from row to row, in inches."""
OLD, KEPT, NEW = "old", "kept", "new"
"""Computed at an earlier step; that, and kept; computed at this step."""


def draw_way(axes: Axes, title: str, colour: str, boxes: dict[str, str], note: str) -> None:
    """Draw an attention whose parts are of different steps.

    Args:
        axes: Where.
        title: What is kept.
        colour: Of what is kept.
        boxes: Of which step query, keys, values, attention and output are.
        note: What follows from it.
    """
    hide_frame(axes)
    axes.set_aspect("equal", anchor="NW")
    axes.set_xlim(-0.1, 6.2)
    axes.set_ylim(-2.35 * ROW, 1.75 * ROW)
    places = {
        "query": Place(0.7, ROW, WIDTH, SMALL),
        "keys": Place(0.7, 0, WIDTH, SMALL),
        "values": Place(0.7, -ROW, WIDTH, SMALL),
        "attention": Place(2.75, 0, WIDTH, SMALL),
        "output": Place(4.8, 0, WIDTH, SMALL),
    }
    for name, step in boxes.items():
        draw_part(axes, places[name], f"{name}: {step}", step, colour)
    for name in ("query", "keys", "values"):
        connect(axes, places[name], places["attention"], boxes["attention"])
    connect(axes, places["attention"], places["output"], boxes["attention"])
    axes.set_title(title, color=colour, fontsize=11, fontweight="bold")
    axes.text(0, -2.0 * ROW, note, fontsize=10, color=FAINT, va="center")


def draw_part(axes: Axes, place: Place, text: str, step: str, colour: str) -> None:
    """Draw a box of one step: dashed if old, filled if kept."""
    if step == OLD:
        draw_outline(axes, place, "none", GONE, "--")
    else:
        draw_outline(axes, place, colour if step == KEPT else "none", SOLID, "-")
    ink = {OLD: GONE, KEPT: "white", NEW: INK}[step]
    write(axes, (place.x, place.y), text, size=9.5, colour=ink, weight="bold")


def connect(axes: Axes, start: Place, end: Place, step: str) -> None:
    """Draw an arrow between two boxes; pale where it was followed at an earlier step."""
    colour = GONE if step == OLD else SOLID
    y = end.y + (start.y - end.y) / 4
    draw_arrow(axes, [(start.right, start.y), (end.left, y)], colour)
