"""Figure: one transformer block that computes, stores and reuses, drawn from its graphs."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.figures.boxes import Variant
from benchmarks.figures.head import new_figure
from benchmarks.figures.layout import lay_out
from benchmarks.figures.panel import BLOCK_FILL, SITE_FILL, SLOT_FILL, SLOT_LINE, draw_variant
from benchmarks.figures.shapes import SOLID
from benchmarks.figures.studio import Studio
from benchmarks.figures.tables import AGED, list_schedules
from benchmarks.figures.timeline import LINE_HEIGHT, draw_line
from benchmarks.figures.variants import read_variants
from benchmarks.harness.plots import FAINT, GONE, Drawn

HOW_TO_READ = (
    "One block of the model, read off the three graphs that the compiler makes of it. Which "
    "of them runs at which step is decided before the run: on top, by one schedule. A box is "
    "what one module does, with its operators and multiply-accumulates (MACs)."
)
REST = 1.8
"""Height of titles and legend, in inches."""


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    stored, computed, reused = variants = read_variants(studio.denoiser)
    layout, sites = lay_out(variants), studio.denoiser.table.sites
    size = 3 * layout.width + 0.8, LINE_HEIGHT + layout.height + REST
    figure = new_figure(make_title(computed, reused), HOW_TO_READ, *size)
    grid = figure.add_gridspec(2, 3, height_ratios=[LINE_HEIGHT, layout.height])
    table = list_schedules(studio.options.steps)[AGED].resolve(sites)
    draw_line(figure.add_subplot(grid[0, :]), AGED, table)
    for column, variant in enumerate((computed, stored, reused)):
        axes = figure.add_subplot(grid[1, column])
        draw_variant(axes, variant, computed, layout, sites)
    add_legend(figure)
    return Drawn(figure, make_caption(computed, reused, studio.model_name))


def make_title(computed: Variant, reused: Variant) -> str:
    """The finding: how much of a block is left."""
    return (
        f"A block that reuses its attention runs {reused.num_operators} of its "
        f"{computed.num_operators} operators and {reused.macs / computed.macs:.0%} of its "
        "multiply-accumulates; the rest is not skipped, it is not in the graph"
    )


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


def make_caption(computed: Variant, reused: Variant, model: str) -> str:
    """The paragraph below the figure."""
    gone = [name for name, level in computed.boxes if (name, level) not in reused.boxes]
    return (
        f"One block of {model} as the compiler specialises it, read off the three graphs. A "
        "box is what one module of the model contributes: its operators and its "
        "multiply-accumulates (MACs), for one picture with guidance; what the block calls "
        "itself between its modules has boxes of its own. Arrows are tensors; the "
        "conditioning does not read the latent and is evaluated apart. At a STORE step the "
        "attention's output is also written into the slot, at a REUSE step it is read from "
        f"there: nothing reads {', '.join(gone)} any more, so that they are gone from the "
        "graph, with their weights."
    )
