"""Figure: one transformer block that computes, stores and reuses, drawn from its graphs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx  # type: ignore[import-untyped]  # it has no types of its own
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.transforms import Bbox

from benchmarks.figures.block import (
    CONDITIONING,
    INPUT,
    OUTPUT,
    SLOT,
    Key,
    Variant,
    read_variants,
)
from benchmarks.figures.head import new_figure
from benchmarks.figures.reuse import AGED, list_schedules
from benchmarks.figures.shapes import SOLID, draw_arrow, draw_outline, middle, place, write
from benchmarks.figures.studio import Studio
from benchmarks.figures.words import describe_box, describe_slot, describe_variant, name_box
from benchmarks.harness.plots import (
    ACTION_COLOURS,
    ACTION_INKS,
    FAINT,
    GONE,
    INK,
    PAPER,
    Drawn,
    hide_frame,
)
from dqar_fx import Action, BranchTable

HOW_TO_READ = (
    "One block of the model, read off the three graphs that the compiler makes of it. Which "
    "of them runs at which step is decided before the run: on top, by one schedule. A box is "
    "what one module does, with its operators and multiply-accumulates (MACs)."
)
LINE_HEIGHT, REST = 1.1, 1.8
"""Heights of the line of steps, and of titles and legend, in inches."""
LEVEL, COLUMN = 0.86, 1.12
"""Distance of boxes from centre to centre, in inches: down, and to the right."""
HEIGHT, WIDE, NARROW = 0.62, 2.3, 1.06
"""Of boxes, in inches: those that are alone at their level are wide."""
LANE = 0.16
"""Distance of lines that pass boxes at the side, in inches."""
SLOT_X, SLOT_WIDTH = 2.3, 1.2
"""Where slots stand, in inches from the middle, and how wide they are."""
LINE = 0.165
"""Distance of two lines of text, in inches."""
LETTER = 0.038
"""Half the width of a letter of a name, in inches."""
MOST = 22
"""Steps that are shown."""
SITE_FILL, BLOCK_FILL, SLOT_FILL, SLOT_LINE = "#fbe3c0", "#d8e9f5", "#c8e8dc", "#00795a"


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    stored, computed, reused = variants = read_variants(studio.denoiser)
    layout, sites = lay_out(variants), studio.denoiser.table.sites
    bounds = layout.bounds
    size = 3 * bounds.width + 0.8, LINE_HEIGHT + bounds.height + REST
    figure = new_figure(make_title(computed, reused), HOW_TO_READ, *size)
    grid = figure.add_gridspec(2, 3, height_ratios=[LINE_HEIGHT, bounds.height])
    table = list_schedules(studio.options.steps)[AGED].resolve(sites)
    draw_line(figure.add_subplot(grid[0, :]), AGED, table)
    for column, variant in enumerate((computed, stored, reused)):
        axes = figure.add_subplot(grid[1, column])
        draw_variant(axes, variant, computed, layout, sites)
    add_legend(figure)
    return Drawn(figure, make_caption(computed, reused, studio.model_name))


# ---- the line of steps ----------------------------------------------------------------------


def draw_line(axes: Axes, name: str, table: BranchTable) -> None:
    """Draw what the first site does from step to step, and where its slot is used.

    A step is one unit wide, its cell one high.
    """
    hide_frame(axes)
    axes.set_aspect("equal", anchor="W")
    steps = min(MOST, table.num_steps)
    actions = [Action(action) for action in table.actions[:steps, 0]]
    colours = [ACTION_COLOURS[action] for action in actions]
    axes.bar(range(steps), 1, width=1, color=colours, edgecolor="white", linewidth=1.5)
    for step, action in enumerate(actions):
        write(axes, (step, 0.5), action.letter, 11, ACTION_INKS[action], weight="bold")
        write(axes, (step, 1.3), str(step), 8.5, FAINT)
    if steps < table.num_steps:
        write(axes, (steps, 0.5), "...", 11, FAINT)
    for step, source in enumerate(table.sources[:steps, 0].tolist()):
        if source >= 0:  # it reads what that step has stored
            way = [(source, 0), (source, -0.57), (step, -0.57), (step, 0)]
            draw_arrow(axes, way, SLOT_LINE)
    for y, text, colour in (
        (1.3, "step", FAINT),
        (0.5, f"schedule {name}, first attention", FAINT),
        (-0.57, "slot: written at S, read at each R", SLOT_LINE),
    ):
        write(axes, (-0.8, y), text, 10, colour, ha="right")
    axes.set(xlim=(-8.6, steps + 0.9), ylim=(-1, 1.62))


# ---- where boxes stand ----------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Places by box, and the lane of each edge that passes boxes; all lengths in inches.

    Attributes:
        places: The same for every variant of a block.
        lanes: Number, from the boxes outwards, by edge.
    """

    places: Mapping[Key, Bbox]
    lanes: Mapping[tuple[Key, Key], int]

    @property
    def bounds(self) -> Bbox:
        """Around all boxes and lanes."""
        around = Bbox.union(list(self.places.values()))
        left = around.x0 - LANE * (2 + max(self.lanes.values(), default=-1))
        return Bbox([[left, around.y0 - 0.05], [around.x1 + LANE / 2, around.y1 + 0.05]])

    def lane_x(self, start: Key, end: Key) -> float:
        """Where the lane of an edge is."""
        left = min(box.x0 for box in self.places.values())
        return float(left - LANE * (1 + self.lanes[start, end]))


def lay_out(variants: Sequence[Variant]) -> Layout:
    """One layout for all variants, so that a box stands where it stood before.

    Boxes stand one level below the other along the data, slots beside the box that writes.
    """
    edges = [edge for variant in variants for edge in variant.edges]
    graph = nx.DiGraph(
        edge for edge in edges if not {SLOT, CONDITIONING} & {name for name, _ in edge}
    )
    order = {key: number for number, key in enumerate(variants[0].boxes)}
    places: dict[Key, Bbox] = {}
    levels: dict[Key, int] = {}
    for level, keys in enumerate(nx.topological_generations(graph)):
        row = sorted(keys, key=lambda key: order.get(key, len(order)))
        width = WIDE if len(row) == 1 else NARROW
        for column, key in enumerate(row):
            x = (column - (len(row) - 1) / 2) * COLUMN
            places[key], levels[key] = place(x, -level * LEVEL, width, HEIGHT), level
    slots = {
        slot: place(SLOT_X, middle(places[writer])[1], SLOT_WIDTH, HEIGHT)
        for writer, slot in edges
        if slot[0] == SLOT and writer in places
    }
    spans = {(start, end): range(levels[start], levels[end]) for start, end in graph.edges}
    passing = [edge for edge, span in spans.items() if len(span) > 1]
    meeting = nx.Graph()  # of edges that pass boxes at the same level
    meeting.add_nodes_from(sorted(passing, key=lambda edge: len(spans[edge])))
    meeting.add_edges_from(
        (one, other)
        for one, other in combinations(passing, 2)
        if set(spans[one]) & set(spans[other])
    )
    # Each in the innermost lane in which it meets no other, short ones first.
    lanes = nx.greedy_color(meeting, strategy=lambda graph, _: list(graph))
    return Layout(places | slots, lanes)


# ---- the block for one action ---------------------------------------------------------------


def draw_variant(
    axes: Axes, variant: Variant, computed: Variant, layout: Layout, sites: Sequence[str]
) -> None:
    """Draw a variant, with what it lacks of the one that computes everything struck out."""
    hide_frame(axes)
    axes.set(xlim=layout.bounds.intervalx, ylim=layout.bounds.intervaly)
    axes.set_aspect("equal", anchor="NW")
    add_title(axes, variant, computed)
    attention = {path.rpartition(".")[2] for path in sites}
    for key, where in layout.places.items():
        box = variant.boxes.get(key)
        is_site = key[0].split(".")[0] in attention
        if key[0] == SLOT:
            draw_cylinder(axes, where, describe_slot(variant), SLOT_FILL if box else None)
        elif box is None:
            name = name_box(key[0], computed.boxes[key])
            draw_box(axes, where, name, ["removed"], None)
        elif key[0] in (INPUT, OUTPUT):
            draw_box(axes, where, name_box(key[0], box), [], PAPER)
        else:
            fill = SITE_FILL if is_site else BLOCK_FILL
            draw_box(axes, where, name_box(key[0], box), describe_box(key[0], box), fill)
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


def draw_box(
    axes: Axes, box: Bbox, name: str, details: Sequence[str], fill: str | None
) -> None:
    """Draw a box with its name and details; without a fill, where one was, struck out."""
    x, y = middle(box)
    top = y + LINE * len(details) / 2
    if fill is None:
        draw_outline(axes, box, "none", GONE, "--")
        half = LETTER * len(name)
        axes.plot([x - half, x + half], [top, top], color=GONE, lw=1.2)
    else:
        draw_outline(axes, box, fill, SOLID, "-")
    ink, faint = (GONE, GONE) if fill is None else (INK, FAINT)
    write(axes, (x, top), name, 9, ink, weight="bold" if details else "normal")
    for number, text in enumerate(details, 1):
        write(axes, (x, top - LINE * number), text, 8, faint)


def draw_cylinder(axes: Axes, box: Bbox, text: str, fill: str | None) -> None:
    """Draw a cylinder; without a fill, the place where one would be."""
    edge, style = (GONE, "--") if fill is None else (SOLID, "-")
    inside, (x, y) = fill or "white", middle(box)
    low, high = y - 0.23, y + 0.21
    looks = {"facecolor": inside, "edgecolor": edge, "linestyle": style}
    axes.add_patch(Ellipse((x, low), box.width, 0.16, **looks))
    axes.fill_between(box.intervalx, low, high, color=inside, linewidth=0)
    axes.vlines(box.intervalx, low, high, color=edge, lw=1.0, ls=style)
    axes.add_patch(Ellipse((x, high), box.width, 0.16, **looks))
    write(axes, (x, y - 0.06), text, 8.5, INK if fill else GONE)


def draw_edge(axes: Axes, layout: Layout, start: Key, end: Key, count: int) -> None:
    """Draw the way of a tensor, or of several."""
    target = layout.places[end]
    if start[0] == CONDITIONING:  # computed ahead of the run
        x, y = target.x1 + 0.24, middle(target)[1] - 0.12
        draw_arrow(axes, [(x, y), (target.x1, y)], FAINT)
        write(axes, (x + 0.03, y), f"conditioning ({count})", 8, FAINT, ha="left")
        return
    source = layout.places[start]
    (x, y), (_, end_y) = middle(source), middle(target)
    if end[0] == SLOT:
        draw_arrow(axes, [(source.x1, y), (target.x0, end_y)], SLOT_LINE)
        write(axes, ((source.x1 + target.x0) / 2, y + 0.1), "write", 9, SLOT_LINE)
    elif start[0] == SLOT:
        end_y += 0.14
        draw_arrow(axes, [(x, source.y0), (x, end_y), (target.x1, end_y)], SLOT_LINE)
        write(axes, (x - 0.3, end_y + 0.1), "read", 9, SLOT_LINE)
    elif (start, end) in layout.lanes:
        lane, y, end_y = layout.lane_x(start, end), y - 0.12, end_y + 0.12
        way = [(source.x0, y), (lane, y), (lane, end_y), (target.x0, end_y)]
        draw_arrow(axes, way, SOLID)
    else:
        way = [(nearest_x(source, target), source.y0), (nearest_x(target, source), target.y1)]
        draw_arrow(axes, way, SOLID)


def nearest_x(box: Bbox, other: Bbox) -> float:
    """Where an arrow from or to another box touches one."""
    return float(min(max(middle(other)[0], box.x0 + LANE), box.x1 - LANE))


# ---- what is written ------------------------------------------------------------------------


def add_legend(figure: Figure) -> None:
    """Say what colours and lines mean."""
    boxes = {"attention": SITE_FILL, "rest of the block": BLOCK_FILL}
    lines = {
        "tensor": SOLID,
        "write or read of the slot": SLOT_LINE,
        "conditioning (number of tensors): from timestep and class, computed ahead": FAINT,
    }
    arrow = {"marker": ">", "markersize": 5, "markevery": [1]}
    figure.legend(
        handles=[
            *(Patch(fc=fill, ec=SOLID, label=name) for name, fill in boxes.items()),
            Patch(fc=SLOT_FILL, ec=SOLID, label="slot: buffer kept between steps"),
            Patch(fc="none", ec=GONE, ls="--", label="not in this graph"),
            *(Line2D([], [], color=each, label=name, **arrow) for name, each in lines.items()),
        ],
        loc="outside lower left",
        ncols=4,
        frameon=False,
    )


def make_title(computed: Variant, reused: Variant) -> str:
    """The finding: how much of a block is left."""
    return (
        f"A block that reuses its attention runs {reused.num_operators} of its "
        f"{computed.num_operators} operators and {reused.macs / computed.macs:.0%} of its "
        "multiply-accumulates; the rest is not skipped, it is not in the graph"
    )


def make_caption(computed: Variant, reused: Variant, model: str) -> str:
    """The paragraph below the figure."""
    gone = [name for name, level in computed.boxes if (name, level) not in reused.boxes]
    return (
        f"One block of {model} as the compiler specialises it, read off the three graphs, for "
        "one picture with guidance; what the block calls itself between its modules has boxes "
        "of its own. Arrows are tensors; the conditioning does not read the latent and is "
        "evaluated apart. At a REUSE step the attention's output is read from the slot: "
        f"nothing reads {', '.join(gone)} any more, so that they are gone from the graph, "
        "with their weights."
    )
