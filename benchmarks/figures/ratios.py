"""Panel of the mismatch figure: which way is better, pair by pair."""

import numpy as np
from matplotlib.axes import Axes

from benchmarks.figures.pairs import Pairs
from benchmarks.harness.plots import BLUE, INK, ORANGE, PAPER, set_titles

MARKS = (1 / 8, 1 / 4, 1 / 2, 2 / 3, 4 / 5, 1, 5 / 4, 3 / 2, 2, 4, 8)
"""Of the axis of ratios."""
HALF = 15
"""Bars on either side of equal errors."""


def draw_ratios(axes: Axes, pairs: Pairs) -> None:
    """The distribution of the ratio of the two errors of a pair."""
    logs = np.log2(pairs.ratio)
    reach = max(0.4, float(np.quantile(np.abs(logs), 0.995)))
    edges = np.linspace(-reach, reach, 2 * HALF + 1)
    counts, _ = np.histogram(np.clip(logs, -reach, reach), edges)
    bars = {"align": "edge", "width": reach / HALF, "edgecolor": PAPER, "linewidth": 0.4}
    axes.bar(edges[:HALF], counts[:HALF], color=ORANGE, hatch="///", **bars)
    axes.bar(edges[HALF:-1], counts[HALF:], color=BLUE, **bars)
    share = pairs.share_better
    write_share(axes, "left", f"K and V better:\n{share:.0%} of {len(logs)}", ORANGE)
    write_share(axes, "right", f"output better:\n{1 - share:.0%} of {len(logs)}", BLUE)
    low, median, high = pairs.quartiles
    axes.axvline(np.log2(median), ymax=0.8, color=INK, lw=1.6)
    axes.axvline(0, ymax=0.8, color=INK, lw=1, ls=":")
    axes.set_ylim(0, 1.3 * counts.max())
    ticks = np.array([ratio for ratio in MARKS if abs(np.log2(ratio)) <= reach])
    axes.set_xticks(np.log2(ticks), [f"{ratio:.3g}" for ratio in ticks])
    axes.set_ylabel("reuses tried (number)")
    axes.set_xlabel(
        "error with K and V, by that with output\n"
        f"median (line) {median:.2f}, quartiles {low:.2f} to {high:.2f}"
    )
    set_titles(axes, "Pair by pair", "same step, site and age")


def write_share(axes: Axes, side: str, text: str, colour: str) -> None:
    """Write above one side who is better there, and how often."""
    x = {"left": 0.02, "right": 0.98}[side]
    axes.text(
        x, 1, text, transform=axes.transAxes, ha=side, va="top", color=colour, weight="bold"
    )
