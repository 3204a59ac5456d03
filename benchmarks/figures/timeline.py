"""The top of the architecture figure: the line of one site in a branch table."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from benchmarks.figures.panel import SLOT_LINE
from benchmarks.figures.shapes import draw_arrow, write
from benchmarks.harness.plots import ACTION_COLOURS, ACTION_INKS, FAINT, hide_frame
from dqar_fx import Action, BranchTable

LINE_HEIGHT = 1.1
CELL = 0.42
"""Sizes in inches."""
MOST = 22
"""Steps that are shown."""


def draw_line(axes: Axes, name: str, table: BranchTable) -> None:
    """Draw what the first site does from step to step, and where its slot is used."""
    hide_frame(axes)
    axes.set_aspect("equal", anchor="W")
    steps = min(MOST, table.num_steps)
    for step in range(steps):
        draw_cell(axes, step, Action(table.actions[step, 0]))
    if steps < table.num_steps:
        write(axes, (steps * CELL + 0.2, CELL / 2), "...", size=11, colour=FAINT)
    for step in range(steps):
        draw_use(axes, step, int(table.sources[step, 0]))
    texts = {
        CELL + 0.13: "step",
        CELL / 2: f"schedule {name}, first attention",
        -0.24: "slot: written at S, read at each R",
    }
    for y, text in texts.items():
        colour = SLOT_LINE if y < 0 else FAINT
        axes.text(-0.12, y, text, ha="right", va="center", fontsize=10, color=colour)
    axes.set_xlim(-3.4, steps * CELL + 0.6)
    axes.set_ylim(-0.42, CELL + 0.26)


def draw_cell(axes: Axes, step: int, action: Action) -> None:
    """Draw one step: its number and its action."""
    axes.add_patch(
        Rectangle((step * CELL, 0), CELL, CELL, fc=ACTION_COLOURS[action], ec="white", lw=1.5)
    )
    middle = (step + 0.5) * CELL
    ink = ACTION_INKS[action]
    write(axes, (middle, CELL / 2), action.letter, size=11, colour=ink, weight="bold")
    write(axes, (middle, CELL + 0.13), str(step), size=8.5, colour=FAINT)


def draw_use(axes: Axes, step: int, source: int) -> None:
    """Draw how a step reads what another has stored; ``source`` is negative for none."""
    if source < 0:
        return
    start, end = ((each + 0.5) * CELL for each in (source, step))
    draw_arrow(axes, [(start, 0), (start, -0.24), (end, -0.24), (end, 0)], SLOT_LINE)
