"""Figure: are kept keys and values worse than kept outputs, as the report says?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from benchmarks.figures.pairs import THIRDS, Pairs, judge, make_title, read_pairs
from benchmarks.figures.studio import Studio
from benchmarks.figures.style import BLUE, INK, ORANGE, Drawn, new_figure
from dqar_fx import Calibration

LOOKS = (("kept output", BLUE, -0.09), ("kept K and V", ORANGE, 0.09))
"""What is kept, its colour, and how far it is drawn beside its place."""
RATIOS = (1 / 8, 1 / 4, 1 / 2, 2 / 3, 4 / 5, 1, 5 / 4, 3 / 2, 2, 4, 8)
"""Marks of the axis of ratios."""


def draw(studio: Studio) -> Drawn:
    """Draw the figure.

    Raises:
        InputError: The calibration lacks kept keys and values.
    """
    calibration = studio.calibration
    sites, denoiser = read_pairs(calibration)
    figure = new_figure(make_title(denoiser), 13.2, 9)
    panels = figure.subplots(2, 3, gridspec_kw={"width_ratios": [1.25, 1, 1]})
    for (by_age, by_third, by_ratio), pairs in zip(panels, (sites, denoiser), strict=True):
        draw_ages(by_age, pairs)
        draw_thirds(by_third, pairs, calibration)
        draw_ratios(by_ratio, pairs)
        by_age.set_ylabel(f"relative error of the\n{pairs.where} (log scale)")
        by_age.set_title("By age of what is kept")
        by_third.set_title(f"Late: {pairs.late_by_early:.2g} times the error of early")
        by_ratio.set_title("Pair by pair")
    return Drawn(figure, make_caption(studio, sites, denoiser))


def draw_ages(axes: Axes, pairs: Pairs) -> None:
    """Medians and quartiles over ages."""
    ages = np.unique(pairs.age)
    spreads = [spread_of(errors, pairs.age, ages) for errors in (pairs.output, pairs.kv)]
    ends = [median[-1] for _, median, _ in spreads]
    for (name, colour, shift), (low, median, high) in zip(LOOKS, spreads, strict=True):
        axes.plot(ages + shift, median, color=colour, marker="o", ms=4, lw=1.8)
        axes.vlines(ages + shift, low, high, color=colour, lw=1.4, alpha=0.55)
        axes.annotate(
            name,
            (ages[-1] + 0.1, median[-1]),
            xytext=(9, 8 if median[-1] == max(ends) else -8),
            textcoords="offset points",
            color=colour,
            va="center",
            fontweight="bold",
        )
    axes.set_xlim(0.5, ages[-1] + 0.42 * len(ages))
    axes.set_xticks(ages)
    axes.set_xlabel("age (steps since it was kept)")
    use_logarithm(axes)


def spread_of(
    errors: NDArray[np.float64], group: NDArray[np.int64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Quartiles ``[3, groups]`` of errors by group."""
    quartiles = [np.quantile(errors[group == each], [0.25, 0.5, 0.75]) for each in groups]
    return np.array(quartiles).T


def use_logarithm(axes: Axes) -> None:
    """A logarithmic axis upwards, marked with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_thirds(axes: Axes, pairs: Pairs, calibration: Calibration) -> None:
    """Medians and quartiles over thirds of the trajectory."""
    thirds = np.unique(pairs.third)
    for (_, colour, shift), errors in zip(LOOKS, (pairs.output, pairs.kv), strict=True):
        low, median, high = spread_of(errors, pairs.third, thirds)
        axes.vlines(thirds + shift, low, high, color=colour, lw=6, alpha=0.35)
        axes.plot(thirds + shift, median, color=colour, marker="o", ms=7, lw=0)
    log_snr = np.log10(np.clip(calibration.snr, 1e-9, 1e9))
    third = np.arange(calibration.num_steps) * len(THIRDS) // calibration.num_steps
    spans = [log_snr[third == number] for number in range(len(THIRDS))]
    names = [f"{n}\n{s[0]:.1f} to {s[-1]:.1f}" for n, s in zip(THIRDS, spans, strict=True)]
    axes.set_xlim(-0.5, len(THIRDS) - 0.5)
    axes.set_xticks(range(len(THIRDS)), names)
    axes.set_xlabel("steps, and log10 of their signal-to-noise ratio")
    use_logarithm(axes)


def draw_ratios(axes: Axes, pairs: Pairs) -> None:
    """The distribution of the ratio of the two errors of a pair."""
    logs = np.log2(pairs.ratio)
    reach = max(0.4, float(np.quantile(np.abs(logs), 0.98)))
    edges = np.linspace(-reach, reach, 31)
    counts, _ = np.histogram(np.clip(logs, -reach, reach), edges)
    half = len(counts) // 2
    sides = (
        ("K and V", ORANGE, slice(None, half), 0.02, "left", pairs.share_better),
        ("output", BLUE, slice(half, None), 0.98, "right", 1 - pairs.share_better),
    )
    for name, colour, side, x, align, share in sides:
        axes.bar(edges[:-1][side], counts[side], 2 * reach / 30, align="edge", color=colour)
        axes.text(
            x,
            1.0,
            f"{name} better:\n{share:.0%} of {len(logs)}",
            transform=axes.transAxes,
            ha=align,
            va="top",
            color=colour,
            fontweight="bold",
        )
    low, median, high = pairs.quartiles
    axes.axvline(np.log2(median), ymax=0.8, color=INK, lw=1.6)
    axes.axvline(0, ymax=0.8, color=INK, lw=1, ls=":")
    axes.set_ylim(0, 1.3 * counts.max())
    ticks = np.array([ratio for ratio in RATIOS if abs(np.log2(ratio)) <= reach])
    axes.set_xticks(np.log2(ticks), [f"{ratio:.3g}" for ratio in ticks])
    axes.set_ylabel("reuses tried")
    axes.set_xlabel(
        "error with K and V / with output\n"
        f"median (line) {median:.2f}, quartiles {low:.2f} to {high:.2f}"
    )


def make_caption(studio: Studio, sites: Pairs, denoiser: Pairs) -> str:
    """The paragraph below the figure."""
    return (
        f"{len(sites.ratio)} single reuses on {studio.model_name} "
        f"({studio.calibration.samples} pictures, {studio.options.steps} steps of "
        f"{type(studio.pipe.scheduler).__name__}), each tried twice at the same step, site "
        "and age: with the site's kept output, and with its kept keys and values (K and V) "
        "under a fresh query, which the report gave up for a mismatch of noise levels between "
        "the two. Errors are norms of the difference from a step that computes everything, "
        "relative to its norm: above of the attention's own output, below of the denoiser's. "
        "Dots are medians, bars quartiles. For the attention's own output, K and V have "
        f"{judge(sites)}; for the denoiser's, {judge(denoiser)}. The denoiser's median error "
        f"with a kept output is {denoiser.late_by_early:.2g} times as large at late steps as "
        "at early ones. These are errors of one reuse at one step; how they add up along a "
        "trajectory is for the pictures of the ablation to say."
    )
