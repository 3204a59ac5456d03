"""One panel of the architecture figure: the block for one action."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from benchmarks.figures.boxes import CONDITIONING, INPUT, OUTPUT, SLOT, Key, Variant
from benchmarks.figures.places import Layout, Place
from benchmarks.figures.shapes import (
    SOLID,
    draw_arrow,
    draw_box,
    draw_cylinder,
    draw_gone_box,
    write,
)
from benchmarks.figures.words import describe_box, describe_slot, describe_variant, name_box
from benchmarks.harness.plots import ACTION_COLOURS, ACTION_INKS, FAINT, hide_frame

SITE_FILL, BLOCK_FILL, SLOT_FILL, SLOT_LINE = "#fbe3c0", "#d8e9f5", "#c8e8dc", "#00795a"


def draw_variant(
    axes: Axes, variant: Variant, computed: Variant, layout: Layout, sites: Sequence[str]
) -> None:
    """Draw a variant; what it lacks is struck out.

    Args:
        axes: Where.
        variant: What is drawn.
        computed: The variant that computes everything, to compare with.
        layout: The same for all variants.
        sites: Module paths of all sites.
    """
    hide_frame(axes)
    axes.set_xlim(layout.left, layout.right)
    axes.set_ylim(layout.bottom, layout.top)
    axes.set_aspect("equal", anchor="NW")
    add_title(axes, variant, computed)
    attention = {path.rpartition(".")[2] for path in sites}
    for key, place in layout.places.items():
        box = variant.boxes.get(key)
        if key[0] == SLOT:
            draw_cylinder(axes, place, describe_slot(variant), SLOT_FILL if box else None)
        elif box is None:
            draw_gone_box(axes, place, name_box(key[0], computed.boxes[key]))
        elif key[0] in (INPUT, OUTPUT):
            draw_box(axes, place, name_box(key[0], box), (), None)
        else:
            fill = SITE_FILL if key[0].split(".")[0] in attention else BLOCK_FILL
            draw_box(axes, place, name_box(key[0], box), describe_box(key[0], box), fill)
    for (start, end), count in variant.edges.items():
        draw_edge(axes, layout, start, end, count)


def add_title(axes: Axes, variant: Variant, computed: Variant) -> None:
    """The action in its colour; below, what it does and comes to."""
    action = variant.action
    axes.set_title(describe_variant(variant, computed), fontsize=10.5)
    axes.annotate(
        f"{action.letter}: {action.name}",
        (0, 1),
        (3, 40),
        xycoords="axes fraction",
        textcoords="offset points",
        fontweight="bold",
        color=ACTION_INKS[action],
        bbox={"facecolor": ACTION_COLOURS[action], "edgecolor": "none", "pad": 3},
    )


def draw_edge(axes: Axes, layout: Layout, start: Key, end: Key, count: int) -> None:
    """Draw the way of a tensor, or of several."""
    target = layout.places[end]
    if start[0] == CONDITIONING:
        draw_conditioning(axes, target, count)
        return
    source = layout.places[start]
    if end[0] == SLOT:
        draw_arrow(axes, [(source.right, source.y), (target.left, target.y)], SLOT_LINE)
        middle = (source.right + target.left) / 2
        write(axes, (middle, source.y + 0.1), "write", size=9, colour=SLOT_LINE)
    elif start[0] == SLOT:
        y = target.y + 0.14
        way = [(source.x, source.bottom), (source.x, y), (target.right, y)]
        draw_arrow(axes, way, SLOT_LINE)
        write(axes, (source.x - 0.3, y + 0.1), "read", size=9, colour=SLOT_LINE)
    elif (start, end) in layout.lanes:
        x, ys = layout.lane_x(start, end), (source.y - 0.12, target.y + 0.12)
        way = [(source.left, ys[0]), (x, ys[0]), (x, ys[1]), (target.left, ys[1])]
        draw_arrow(axes, way, SOLID)
    else:
        top = source.nearest_x(target), source.bottom
        draw_arrow(axes, [top, (target.nearest_x(source), target.top)], SOLID)


def draw_conditioning(axes: Axes, target: Place, count: int) -> None:
    """Draw tensors that are computed ahead of the run."""
    y, x = target.y - 0.12, target.right + 0.24
    draw_arrow(axes, [(x, y), (target.right, y)], FAINT)
    axes.text(x + 0.03, y, f"conditioning ({count})", fontsize=8, color=FAINT, va="center")
