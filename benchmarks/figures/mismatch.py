"""Figure: are kept keys and values worse than kept outputs, as the report says?"""

from matplotlib.figure import SubFigure

from benchmarks.figures.errors import draw_ages, draw_thirds
from benchmarks.figures.head import new_figure
from benchmarks.figures.pairs import Pairs, judge, make_title, read_pairs
from benchmarks.figures.ratios import draw_ratios
from benchmarks.figures.sketch import KEPT, NEW, OLD, draw_way
from benchmarks.figures.studio import Studio
from benchmarks.harness.plots import BLUE, ORANGE, Drawn

HOW_TO_READ = (
    "A site reuses what it kept at an older, noisier step: its output, or its keys and values "
    "(K and V) for the query of this step. The latter mixes two noise levels, which the "
    "report calls a mismatch. Each reuse was tried both ways; lower errors are better."
)
PARTS = ("query", "keys", "values", "attention", "output")
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


def draw_ways(figure: SubFigure) -> None:
    """Draw both ways to reuse side by side."""
    panels = figure.subplots(1, len(WAYS))
    for axes, (title, colour, steps, note) in zip(panels, WAYS, strict=True):
        draw_way(axes, title, colour, dict(zip(PARTS, steps, strict=True)), note)


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
        "Dots are medians, bars quartiles; the outermost bars of the ratios hold all beyond. "
        f"For the attention's own output, K and V have {judge(sites)}; for the denoiser's, "
        f"{judge(denoiser)}. The denoiser's median error with a kept output is "
        f"{denoiser.late_by_early:.2g} times as large at late steps as "
        "at early ones. These are errors of one reuse at one step; how they add up along a "
        "trajectory is for the pictures of the ablation to say."
    )
