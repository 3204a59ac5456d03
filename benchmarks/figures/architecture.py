"""Figure: one transformer block that computes, stores and reuses, drawn from its graphs."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.figures.boxes import CONDITIONING, INPUT, OUTPUT, SLOT, Box, Key, Variant
from benchmarks.figures.layout import HEIGHT, LEVEL, SIDE_X, Layout, lay_out
from benchmarks.figures.shapes import SOLID, draw_arrow, draw_box, draw_cylinder, draw_gone_box
from benchmarks.figures.studio import Studio
from benchmarks.figures.style import FAINT, PALE, Drawn, hide_frame, new_figure
from benchmarks.figures.variants import read_variants
from dqar_fx import Action

SITE_FILL, BLOCK_FILL, SLOT_FILL, SLOT_LINE = "#fbe3c0", "#d8e9f5", "#c8e8dc", "#00795a"
VIEWS = {"view", "transpose", "reshape", "permute", "unsqueeze", "slice", "select"}
"""Operators that only look at a tensor in another shape."""
WORDS = {
    INPUT: "tokens from the block before",
    OUTPUT: "tokens to the next block",
    "block": "block itself",
}


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    variants = read_variants(studio.denoiser)
    stored, computed, reused = variants
    layout = lay_out(variants)
    figure = new_figure(
        f"A block that reuses its attention runs {reused.num_operators} of its "
        f"{computed.num_operators} operators and {reused.macs / computed.macs:.0%} of its "
        "multiply-accumulates; the rest is not skipped, it is not in the graph",
        13.8,
        LEVEL * layout.num_levels + 1.9,
    )
    panels = figure.subplots(1, 3)
    for axes, variant in zip(panels, (computed, stored, reused), strict=True):
        draw_variant(axes, variant, layout, studio.denoiser.table.sites)
        axes.set_title(describe(variant, computed), fontsize=11.5)
    add_legend(figure)
    return Drawn(figure, make_caption(computed, reused, studio.model_name))


def draw_variant(axes: Axes, variant: Variant, layout: Layout, sites: Sequence[str]) -> None:
    """Draw a variant; what it lacks is struck out."""
    hide_frame(axes)
    axes.set_xlim(layout.left - 0.05, SIDE_X + 0.58)
    axes.set_ylim(-LEVEL * (layout.num_levels - 1) - HEIGHT / 2 - 0.05, HEIGHT / 2 + 0.05)
    axes.set_aspect("equal")
    attention = {path.rpartition(".")[2] for path in sites}
    for key, place in layout.places.items():
        name, box = WORDS.get(key[0], key[0]), variant.boxes.get(key)
        if key[0] == SLOT:
            draw_cylinder(axes, place, describe_slot(box), SLOT_FILL if box else None)
        elif box is None:
            draw_gone_box(axes, place, name)
        elif key[0] in (INPUT, OUTPUT):
            draw_box(axes, place, name, (), None)
        else:
            fill = SITE_FILL if key[0].split(".")[0] in attention else BLOCK_FILL
            draw_box(axes, place, name, describe_box(box), fill)
    for (start, end), count in variant.edges.items():
        draw_edge(axes, layout, start, end, count)


def draw_edge(axes: Axes, layout: Layout, start: Key, end: Key, count: int) -> None:
    """Draw the way of a tensor, or of several."""
    target = layout.places[end]
    if start[0] == CONDITIONING:
        y = target.y - 0.12
        text = "conditioning" + (f" x{count}" if count > 1 else "")
        axes.text(target.right + 0.26, y, text, fontsize=8, color=FAINT, va="center")
        draw_arrow(axes, [(target.right + 0.24, y), (target.right, y)], FAINT)
        return
    source = layout.places[start]
    if end[0] == SLOT:
        draw_arrow(axes, [(source.right, source.y), (target.left, target.y)], SLOT_LINE)
    elif start[0] == SLOT:
        y = target.y + 0.14
        way = [(source.x, source.y - HEIGHT / 2), (source.x, y), (target.right, y)]
        draw_arrow(axes, way, SLOT_LINE)
    elif (start, end) in layout.lanes:
        x, ys = layout.lane_x(start, end), (source.y - 0.12, target.y + 0.12)
        way = [(source.left, ys[0]), (x, ys[0]), (x, ys[1]), (target.left, ys[1])]
        draw_arrow(axes, way, SOLID)
    else:
        ends = (source.x, source.y - HEIGHT / 2), (target.x, target.y + HEIGHT / 2)
        draw_arrow(axes, ends, SOLID)


def add_legend(figure: Figure) -> None:
    """Say what colours and lines mean."""
    figure.legend(
        handles=[
            Patch(facecolor=SITE_FILL, edgecolor=SOLID, label="attention"),
            Patch(facecolor=BLOCK_FILL, edgecolor=SOLID, label="rest of the block"),
            Patch(facecolor=SLOT_FILL, edgecolor=SOLID, label="buffer kept between steps"),
            Patch(facecolor="none", edgecolor=PALE, ls="--", label="not in this graph"),
            Line2D([], [], color=SOLID, label="tensor"),
        ],
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )


def describe(variant: Variant, computed: Variant) -> str:
    """A panel's title: what the block does, and how much that is."""
    size = f"{variant.num_operators} operators, {show_macs(variant.macs)} MACs"
    extra = variant.num_operators - computed.num_operators
    saved = variant.macs / computed.macs - 1
    return {
        Action.COMPUTE: f"COMPUTE: as the original model\n{size}",
        Action.STORE: f"STORE: computes, and keeps the output\n{size} (+{extra} to keep it)",
        Action.REUSE: f"REUSE: reads what was kept\n{size} ({saved:+.0%})",
    }[variant.action]


def describe_box(box: Box) -> list[str]:
    """Operators, views apart, and multiply-accumulates, in one or two lines."""
    names = [name for name in box.operators if name not in VIEWS]
    num_views = len(box.operators) - len(names)
    more = [f"{num_views} views"] if num_views else []
    more += [f"{show_macs(box.macs)} MACs"] if box.macs else []
    return [", ".join(line) for line in (names, more) if line]


def describe_slot(box: Box | None) -> str:
    """A slot, and the operators that write or read it in its format."""
    if box is None:
        return "slot:\nnot an input"
    if len(box.operators) > 2:
        return f"slot\n{len(box.operators)} operators"
    return "\n".join(("slot", *box.operators))


def show_macs(macs: int) -> str:
    """A number of multiply-accumulates."""
    return f"{macs / 1e9:.1f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"


def make_caption(computed: Variant, reused: Variant, model: str) -> str:
    """The paragraph below the figure."""
    gone = [key[0] for key in computed.boxes if key not in reused.boxes]
    return (
        f"One block of {model} as the compiler specialises it, read off the three graphs. A "
        "box is what one module of the model contributes: its operators and its "
        "multiply-accumulates (MACs), for one picture with guidance; what the block calls "
        "itself between its modules has boxes of its own. Arrows are tensors; the "
        "conditioning does not read the latent and is evaluated apart. Where the block "
        f"reuses, nothing reads {', '.join(gone)} any more, so that they are gone from its "
        "graph, with their weights."
    )
