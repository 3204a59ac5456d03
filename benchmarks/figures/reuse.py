"""Figure: when schedules and gates reuse, and the linear schedule's table."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from numpy.typing import NDArray

from benchmarks.contenders import WARMUP
from benchmarks.figures.studio import Studio
from benchmarks.figures.style import BLUE, SAND, Drawn, new_figure
from benchmarks.gates.lineup import ENTROPY, POLICY, SNR, list_families
from dqar_fx import Action, BranchTable, Policy, Schedule

GATES = (SNR, ENTROPY, POLICY)
TARGET = 0.5
"""Share of cells that the gates are set to reuse."""
COLOURS = {Action.COMPUTE: "#e8e8e8", Action.STORE: SAND, Action.REUSE: BLUE}
MEANING = {
    Action.COMPUTE: "compute",
    Action.STORE: "compute, and keep the output",
    Action.REUSE: "reuse what was kept",
}


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    tables = list_tables(studio)
    name, linear = next(iter(tables.items()))
    figure = new_figure(make_title(linear), 13.2, 10.2)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    top, bottom = parts
    panels = top.subplots(2, 3, sharex=True, sharey=True)
    for axes, (each, table) in zip(panels.flat, tables.items(), strict=True):
        kind = "gate" if each in GATES else "schedule"
        draw_share(axes, f"{kind}: {each}", table)
    top.supxlabel("denoising step (0: noise alone; last: the picture)", fontsize=11)
    top.supylabel("sites that reuse (% of all)", fontsize=11)
    draw_table(bottom.subplots(), name, linear)
    return Drawn(figure, make_caption(studio, tables))


def list_tables(studio: Studio) -> dict[str, BranchTable]:
    """The branch tables by name; the report's schedule first."""
    steps, sites = studio.options.steps, studio.denoiser.table.sites
    policy = Policy.fit(studio.calibration)
    families = list_families(studio.pipe.scheduler, studio.calibration, policy)
    return {
        "linear": Schedule.linear(steps, WARMUP).resolve(sites),
        "linear, max_age=3": Schedule.linear(steps, WARMUP, max_age=3).resolve(sites),
        "interval every=2": Schedule.interval(steps, 2, warmup=WARMUP).resolve(sites),
        **{name: families[name].settle(sites, TARGET).table for name in GATES},
    }


def share_of_reuse(table: BranchTable) -> NDArray[np.float64]:
    """Per step, the share of sites that reuse, in [0, 1]."""
    return np.asarray(table.is_read.mean(axis=1))


def make_title(linear: BranchTable) -> str:
    """The finding: when the linear schedule begins, and when it is complete."""
    share = share_of_reuse(linear)
    if not share.any():
        return "The linear schedule reuses nothing in so few steps"
    first, full = int(np.argmax(share > 0)), int(np.argmax(share == share.max()))
    return (
        f"The linear schedule computes everything up to step {first - 1}; then reuse spreads "
        f"from shallow to deep sites until all reuse from step {full} on, in "
        f"{linear.reuse_ratio:.0%} of all cells"
    )


def draw_share(axes: Axes, name: str, table: BranchTable) -> None:
    """Draw the share of sites over steps."""
    edges = np.arange(table.num_steps + 1) - 0.5
    axes.stairs(100 * share_of_reuse(table), edges, fill=True, color=BLUE)
    axes.set_title(f"{name}, {table.reuse_ratio:.0%} of all cells", fontsize=11)
    axes.set_ylim(0, 104)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([0, 50, 100])


def draw_table(axes: Axes, name: str, table: BranchTable) -> None:
    """Draw a branch table as a map, shallow sites on top."""
    colours = ListedColormap(list(COLOURS.values()))
    axes.pcolormesh(
        np.arange(table.num_steps + 1) - 0.5,
        np.arange(len(table.sites) + 1) - 0.5,
        table.actions.T,
        cmap=colours,
        norm=BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3),
        edgecolor="white",
        linewidth=0.5,
    )
    axes.invert_yaxis()
    axes.set_yticks(
        range(len(table.sites)), table.sites, fontsize=min(9, 110 / len(table.sites))
    )
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("denoising step")
    axes.set_title(f"The table of the {name} schedule: every cell is decided before the run")
    axes.legend(
        handles=[Patch(color=COLOURS[a], label=MEANING[a]) for a in COLOURS],
        loc="upper left",
        bbox_to_anchor=(0, -0.16),
        ncols=3,
        frameon=False,
        fontsize=10,
    )


def make_caption(studio: Studio, tables: dict[str, BranchTable]) -> str:
    """The paragraph below the figure."""
    first = next(iter(tables.values()))
    gates = ", ".join(f"{name} ({tables[name].reuse_ratio:.0%})" for name in GATES)
    return (
        f"Which share of the {len(first.sites)} attention sites of {studio.model_name} reads "
        f"a kept output at each of {first.num_steps} denoising steps. The schedules follow "
        f"the step alone, after a warm-up of {WARMUP} steps; the gates follow what a "
        "calibration run measured (signal-to-noise ratio of the latent, entropy of the "
        "attention, error that a learned policy predicts), each with the threshold at which "
        f"it comes nearest to {TARGET:.0%}: {gates}. Below, the linear schedule cell by cell: "
        "an output is kept (yellow) only at the last step before a site begins to reuse "
        "(blue), and without max_age the same output is read until the end."
    )
