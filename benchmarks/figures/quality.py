"""Figure: the same seeds, untransformed and with every configuration of the ablation."""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes

from benchmarks.figures.head import new_figure
from benchmarks.figures.naming import READING, name_row
from benchmarks.figures.strips import Strip, generate_strips
from benchmarks.figures.studio import Studio
from benchmarks.harness.plots import FAINT, NEAR_DB, ORANGE, Drawn, hide_frame

CELL = 1.12
"""Side of a picture, in inches."""
HOW_TO_READ = (
    "A column is one class and one seed, a row one way to run the same model: look down a "
    f"column for what changes. {READING} Below a picture: its PSNR against the picture on top "
    f"of the column, the higher, the nearer; below {NEAR_DB} dB it is bold and orange."
)


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    strips = list(generate_strips(studio))
    columns = len(studio.labels)
    width, height = max(8, 2.9 + CELL * columns), 0.7 + (CELL + 0.26) * len(strips)
    figure = new_figure(make_title(strips), HOW_TO_READ, width, height)
    panels = figure.subplots(len(strips), columns, squeeze=False)
    for row, strip in zip(panels, strips, strict=True):
        for axes, picture, psnr_db in zip(row, strip.images, strip.psnr_db, strict=True):
            draw_picture(axes, picture, psnr_db)
        name_row(row[0], (0, 0.5), strip.name, strip.detail, "axes fraction")
    for axes, name, seed in zip(panels[0], studio.task.names, studio.task.seeds, strict=True):
        axes.set_title(f"{name}\nseed {seed}", loc="center", fontsize=9.5)
    return Drawn(figure, make_caption(studio, strips))


def make_title(strips: Sequence[Strip]) -> str:
    """The finding: who is nearest, who is farthest."""
    worst, *_, best = sorted(strips[1:], key=lambda strip: strip.whole_db)
    return (
        f"Same seeds, same classes: {best.name} stays nearest to the untransformed pictures "
        f"({show(best.whole_db)}), {worst.name} strays farthest ({show(worst.whole_db)})"
    )


def show(psnr_db: float) -> str:
    """PSNR with its unit."""
    return "equal" if math.isinf(psnr_db) else f"{psnr_db:.1f} dB"


def draw_picture(axes: Axes, picture: torch.Tensor, psnr_db: float) -> None:
    """Draw a picture with its PSNR below."""
    hide_frame(axes)
    pixels = picture.permute(1, 2, 0).squeeze().numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    is_far = psnr_db < NEAR_DB
    axes.text(
        0.5,
        -0.03,
        "" if math.isinf(psnr_db) else show(psnr_db),
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=9,
        color=ORANGE if is_far else FAINT,
        fontweight="bold" if is_far else "normal",
    )


def make_caption(studio: Studio, strips: Sequence[Strip]) -> str:
    """The paragraph below the figure."""
    whole = ", ".join(f"{strip.name} {show(strip.whole_db)}" for strip in strips[1:])
    return (
        f"Pictures of {studio.model_name} with {studio.options.steps} steps of "
        f"{type(studio.pipe.scheduler).__name__} and guidance {studio.task.guidance:g}: a "
        "column is one class and one seed, a row one configuration, in eager mode. The first "
        "row is the untransformed model. Below each picture: its peak signal-to-noise ratio "
        "against the picture on top of its column; less than "
        f"{NEAR_DB} dB is orange. Over all pictures: {whole}."
    )
