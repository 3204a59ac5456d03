"""Figure: are kept keys and values worse than kept outputs, as the report says?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from benchmarks.figures.head import new_figure
from benchmarks.figures.pairs import THIRDS, Pairs, judge, make_title, read_pairs
from benchmarks.figures.shapes import SOLID, draw_arrow, draw_outline, middle, place, write
from benchmarks.figures.studio import Studio
from benchmarks.harness.plots import (
    BLUE,
    FAINT,
    GONE,
    INK,
    ORANGE,
    PAPER,
    Drawn,
    hide_frame,
    set_titles,
)

HOW_TO_READ = (
    "A site reuses what it kept at an older, noisier step: its output, or its keys and values "
    "(K and V) for the query of this step. The latter mixes two noise levels, which the "
    "report calls a mismatch. Each reuse was tried both ways; lower errors are better."
)
OLD, KEPT, NEW = "old", "kept", "new"
"""Computed at an earlier step; that, and kept; computed at this step."""
ROW = 0.4
"""Distance of boxes from above to below, in inches."""
PLACES = {
    "query": place(0.7, ROW, 1.4, 0.3),
    "keys": place(0.7, 0, 1.4, 0.3),
    "values": place(0.7, -ROW, 1.4, 0.3),
    "attention": place(2.75, 0, 1.4, 0.3),
    "output": place(4.8, 0, 1.4, 0.3),
}
"""Where the parts of an attention stand, in inches."""
WAYS = (
    (
        "Kept output",
        BLUE,
        (OLD, OLD, OLD, OLD, KEPT),
        "all of one older step: no mismatch",
    ),
    (
        "Kept keys and values (K and V)",
        ORANGE,
        (NEW, KEPT, KEPT, NEW, NEW),
        "the query of this step meets keys of an older, noisier one: the mismatch",
    ),
)
"""Title, colour, steps of the parts, and what follows."""
LOOKS = (
    ("kept output", BLUE, "o", -0.09),
    ("kept keys and values (K and V)", ORANGE, "D", 0.09),
)
"""What is kept, its colour and mark, and how far it is drawn beside its place."""
STAGES = ("early\nmostly noise", "middle\n", "late\nmostly picture")
MARKS = (1 / 8, 1 / 4, 1 / 2, 2 / 3, 4 / 5, 1, 5 / 4, 3 / 2, 2, 4, 8)
"""Of the axis of ratios."""
HALF = 15
"""Bars on either side of equal errors."""


def draw(studio: Studio) -> Drawn:
    """Draw the figure.

    Raises:
        InputError: The calibration lacks kept keys and values.
    """
    calibration = studio.calibration
    sites, denoiser = read_pairs(calibration)
    figure = new_figure(make_title(denoiser), HOW_TO_READ, 13.2, 10.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.9, 8.7])
    draw_ways(top)
    panels = bottom.subplots(2, 3, gridspec_kw={"width_ratios": [1.25, 1, 1]})
    for (by_age, by_third, by_ratio), pairs in zip(panels, (sites, denoiser), strict=True):
        draw_ages(by_age, pairs)
        draw_thirds(by_third, pairs, calibration.snr)
        draw_ratios(by_ratio, pairs)
        by_age.set_ylabel(f"error of the {pairs.where}\n(relative to its size, log scale)")
    handles, _ = panels[0, 0].get_legend_handles_labels()
    bottom.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    return Drawn(figure, make_caption(studio, sites, denoiser))


# ---- both ways to reuse ---------------------------------------------------------------------


def draw_ways(figure: SubFigure) -> None:
    """Draw both ways side by side: an attention whose parts are of different steps."""
    panels = figure.subplots(1, len(WAYS))
    for axes, (title, colour, steps, note) in zip(panels, WAYS, strict=True):
        hide_frame(axes)
        axes.set_aspect("equal", anchor="NW")
        axes.set(xlim=(-0.1, 6.2), ylim=(-2.35 * ROW, 1.75 * ROW))
        axes.set_title(title, color=colour, fontsize=11, fontweight="bold")
        write(axes, (0, -2 * ROW), note, 10, FAINT, ha="left")
        for name, step in zip(PLACES, steps, strict=True):
            draw_part(axes, name, step, colour)
        # What an attention reads was followed when it was computed.
        followed = GONE if steps[list(PLACES).index("attention")] == OLD else SOLID
        for start in ("query", "keys", "values"):
            connect(axes, start, "attention", followed)
        connect(axes, "attention", "output", followed)


def draw_part(axes: Axes, name: str, step: str, colour: str) -> None:
    """Draw a box of one step: dashed if old, filled if kept."""
    fill = colour if step == KEPT else "none"
    edge, style = (GONE, "--") if step == OLD else (SOLID, "-")
    draw_outline(axes, PLACES[name], fill, edge, style)
    ink = {OLD: GONE, KEPT: "white", NEW: INK}[step]
    write(axes, middle(PLACES[name]), f"{name}: {step}", 9.5, ink, weight="bold")


def connect(axes: Axes, start: str, end: str, colour: str) -> None:
    """Draw an arrow between two boxes."""
    (_, begin), (_, y) = middle(PLACES[start]), middle(PLACES[end])
    way = [(PLACES[start].x1, begin), (PLACES[end].x0, y + (begin - y) / 4)]
    draw_arrow(axes, way, colour)


# ---- what was measured ----------------------------------------------------------------------


def draw_ages(axes: Axes, pairs: Pairs) -> None:
    """Medians and quartiles over ages."""
    ages = np.unique(pairs.age)
    draw_errors(axes, pairs, pairs.age, ages, ms=5, lw=1.8, elinewidth=1.6)
    axes.set_xticks(ages)
    axes.set_xlabel("age (steps since it was kept)")
    set_titles(axes, "By age of what is kept", "medians; bars: quartiles")


def draw_thirds(axes: Axes, pairs: Pairs, snr: NDArray[np.float64]) -> None:
    """Medians and quartiles over thirds of the trajectory; ``snr`` is of its steps."""
    draw_errors(axes, pairs, pairs.third, np.unique(pairs.third), ms=7, lw=0, elinewidth=6)
    spans = np.array_split(np.log10(np.clip(snr, 1e-9, 1e9)), len(THIRDS))
    names = [f"{n}\n{s[0]:.1f} to {s[-1]:.1f}" for n, s in zip(STAGES, spans, strict=True)]
    axes.set_xlim(-0.5, len(THIRDS) - 0.5)
    axes.set_xticks(range(len(THIRDS)), names)
    axes.set_xlabel("steps by noise level (log10 of signal-to-noise)")
    detail = f"late steps err {pairs.late_by_early:.2g} times as much as early ones"
    set_titles(axes, "By noise level", detail)


def draw_errors(
    axes: Axes,
    pairs: Pairs,
    group: NDArray[np.int64],
    groups: NDArray[np.int64],
    **looks: float,
) -> None:
    """Medians and quartiles of both errors by group, on a logarithmic axis upwards."""
    for (name, colour, mark, shift), errors in zip(LOOKS, pairs.both, strict=True):
        quartiles = [np.quantile(errors[group == each], [0.25, 0.5, 0.75]) for each in groups]
        low, median, high = np.array(quartiles).T
        reach = [median - low, high - median]
        _, _, (bars,) = axes.errorbar(
            groups + shift, median, reach, color=colour, marker=mark, label=name, **looks
        )
        bars.set_alpha(0.45)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_ratios(axes: Axes, pairs: Pairs) -> None:
    """The distribution of the ratio of the two errors of a pair."""
    logs = np.log2(pairs.ratio)
    reach = max(0.4, float(np.quantile(np.abs(logs), 0.995)))
    edges = np.linspace(-reach, reach, 2 * HALF + 1)
    counts, _, bars = axes.hist(
        np.clip(logs, -reach, reach), edges, color=BLUE, edgecolor=PAPER, linewidth=0.4
    )
    for bar in bars[:HALF]:
        bar.set(facecolor=ORANGE, hatch="///")
    share, (low, median, high) = pairs.share_better, pairs.quartiles
    for x, side, text, colour in (
        (0.02, "left", f"K and V better:\n{share:.0%} of {len(logs)}", ORANGE),
        (0.98, "right", f"output better:\n{1 - share:.0%} of {len(logs)}", BLUE),
    ):
        above = {"transform": axes.transAxes, "ha": side, "va": "top", "weight": "bold"}
        write(axes, (x, 1), text, 11, colour, **above)
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


def make_caption(studio: Studio, sites: Pairs, denoiser: Pairs) -> str:
    """The paragraph below the figure."""
    return (
        f"{len(sites.ratio)} single reuses on {studio.model_name} "
        f"({studio.calibration.samples} pictures, {studio.options.steps} steps of "
        f"{type(studio.pipe.scheduler).__name__}), each tried twice at the same step, site "
        "and age: with the site's kept output, and with its kept keys and values (K and V) "
        "under a fresh query. Errors are norms of the difference from a step that computes "
        "everything, relative to its norm: above of the attention's own output, below of the "
        "denoiser's. "
        "Dots are medians, bars quartiles; the outermost bars of the ratios hold all beyond. "
        f"For the attention's own output, K and V have {judge(sites)}; for the denoiser's, "
        f"{judge(denoiser)}. The denoiser's median error with a kept output is "
        f"{denoiser.late_by_early:.2g} times as large at late steps as "
        "at early ones. These are errors of one reuse at one step; how they add up along a "
        "trajectory is for the pictures of the ablation to say."
    )
