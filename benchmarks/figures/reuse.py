"""Figure: when schedules and gates reuse, and the linear schedule's table."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch

from benchmarks.figures.head import new_figure
from benchmarks.figures.studio import Studio
from benchmarks.figures.tables import GATES, LINEAR, RULES, TARGET, list_tables, share_of_reuse
from benchmarks.gates.lineup import POLICY
from benchmarks.harness.contenders import WARMUP
from benchmarks.harness.plots import ACTION_COLOURS, BLUE, INK, Drawn, set_titles
from dqar_fx import Action, BranchTable

MEANING = {
    Action.COMPUTE: "C: compute",
    Action.STORE: "S: compute, and keep the output (STORE)",
    Action.REUSE: "R: read what was kept (REUSE)",
}
HOW_TO_READ = (
    "A site is one attention of the model, a cell one site at one step. Above: the share of "
    "sites that read a kept output instead of computing; schedules follow the step alone, "
    "gates what a calibration run measured. Below: the first schedule, cell by cell."
)


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    tables = list_tables(studio)
    linear = tables[LINEAR]
    figure = new_figure(make_title(linear, tables[POLICY]), HOW_TO_READ, 13.2, 9.4)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.3, 1])
    panels = top.subplots(2, 3, sharex=True, sharey=True)
    for axes, (name, table) in zip(panels.flat, tables.items(), strict=True):
        draw_share(axes, name, table)
    top.supxlabel("denoising step (0: noise alone; last: the picture)", fontsize=11)
    top.supylabel("sites that reuse (% of all)", fontsize=11)
    draw_table(bottom.subplots(), LINEAR, linear)
    return Drawn(figure, make_caption(studio, tables))


def make_title(linear: BranchTable, policy: BranchTable) -> str:
    """The finding: when the linear schedule reuses, and when the policy would."""
    share = share_of_reuse(linear)
    if not share.any() or not policy.is_read.any():
        return "The linear schedule or the learned policy reuses nothing in so few steps"
    first, full = int(np.argmax(share > 0)), int(np.argmax(share == share.max()))
    own, other = (np.argwhere(table.is_read)[:, 0].mean() for table in (linear, policy))
    return (
        f"The linear schedule computes everything up to step {first - 1} and reuses "
        f"everything from step {full} on; the learned policy, which follows measured errors, "
        f"reuses {'earlier' if other < own else 'later'} (on average at step {other:.0f}, "
        f"not {own:.0f})"
    )


def draw_share(axes: Axes, name: str, table: BranchTable) -> None:
    """Draw the share of sites over steps."""
    edges = np.arange(table.num_steps + 1) - 0.5
    kind = "gate" if name in GATES else "schedule"
    axes.stairs(100 * share_of_reuse(table), edges, fill=True, color=BLUE)
    set_titles(axes, f"{kind}: {name} ({table.reuse_ratio:.0%} of cells)", RULES[name])
    axes.set_ylim(0, 104)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([0, 50, 100])


def draw_table(axes: Axes, name: str, table: BranchTable) -> None:
    """Draw a branch table as a map, shallow sites on top."""
    axes.pcolormesh(
        np.arange(table.num_steps + 1) - 0.5,
        np.arange(len(table.sites) + 1) - 0.5,
        table.actions.T,
        cmap=ListedColormap(list(ACTION_COLOURS.values())),
        norm=BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3),
        edgecolor="white",
        linewidth=0.5,
    )
    for step, site in np.argwhere(table.actions == Action.STORE):
        axes.text(step, site, "S", ha="center", va="center", fontsize=9, color=INK)
    axes.invert_yaxis()
    small = min(9, 110 / len(table.sites))
    axes.set_yticks(range(len(table.sites)), table.sites, fontsize=small)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("denoising step")
    axes.set_title(
        f"The {name} schedule, cell by cell: all is decided before the run",
        fontsize=10.5,
        fontweight="bold",
    )
    axes.legend(
        handles=[Patch(color=ACTION_COLOURS[each], label=MEANING[each]) for each in MEANING],
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
