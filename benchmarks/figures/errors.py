"""Panels of the mismatch figure: errors of both ways by age and by noise level."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from benchmarks.figures.pairs import THIRDS, Pairs
from benchmarks.harness.plots import BLUE, ORANGE, set_titles

LOOKS = (
    ("kept output", BLUE, "o", -0.09),
    ("kept keys and values (K and V)", ORANGE, "D", 0.09),
)
"""What is kept, its colour and mark, and how far it is drawn beside its place."""
STAGES = ("early\nmostly noise", "middle\n", "late\nmostly picture")


def draw_ages(axes: Axes, pairs: Pairs) -> None:
    """Medians and quartiles over ages."""
    ages = np.unique(pairs.age)
    for (name, colour, mark, shift), errors in zip(LOOKS, pairs.both, strict=True):
        low, median, high = spread_of(errors, pairs.age, ages)
        axes.vlines(ages + shift, low, high, color=colour, lw=1.6, alpha=0.55)
        axes.plot(ages + shift, median, color=colour, marker=mark, ms=5, lw=1.8, label=name)
    axes.set_xticks(ages)
    axes.set_xlabel("age (steps since it was kept)")
    use_logarithm(axes)
    set_titles(axes, "By age of what is kept", "medians; bars: quartiles")


def draw_thirds(axes: Axes, pairs: Pairs, snr: NDArray[np.float64]) -> None:
    """Medians and quartiles over thirds of the trajectory; ``snr`` is of its steps."""
    thirds = np.unique(pairs.third)
    for (_, colour, mark, shift), errors in zip(LOOKS, pairs.both, strict=True):
        low, median, high = spread_of(errors, pairs.third, thirds)
        axes.vlines(thirds + shift, low, high, color=colour, lw=6, alpha=0.35)
        axes.plot(thirds + shift, median, color=colour, marker=mark, ms=7, lw=0)
    spans = np.array_split(np.log10(np.clip(snr, 1e-9, 1e9)), len(THIRDS))
    names = [f"{n}\n{s[0]:.1f} to {s[-1]:.1f}" for n, s in zip(STAGES, spans, strict=True)]
    axes.set_xlim(-0.5, len(THIRDS) - 0.5)
    axes.set_xticks(range(len(THIRDS)), names)
    axes.set_xlabel("steps by noise level (log10 of signal-to-noise)")
    use_logarithm(axes)
    detail = f"late steps err {pairs.late_by_early:.2g} times as much as early ones"
    set_titles(axes, "By noise level", detail)


def spread_of(
    errors: NDArray[np.float64], group: NDArray[np.int64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Quartiles ``[3, groups]`` of errors by group."""
    quartiles = [np.quantile(errors[group == each], [0.25, 0.5, 0.75]) for each in groups]
    return np.array(quartiles).T


def use_logarithm(axes: Axes) -> None:
    """A logarithmic axis upwards, marked with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
