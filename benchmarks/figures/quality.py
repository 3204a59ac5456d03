"""Figure: the same seeds, untransformed and with every configuration of the ablation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from tqdm import tqdm

from benchmarks.ablation.configurations import SharingWorkshop, list_configurations
from benchmarks.figures.head import READING, describe_reuse, name_row, new_figure, show_psnr
from benchmarks.figures.studio import Studio
from benchmarks.harness.contenders import Contender
from benchmarks.harness.plots import FAINT, NEAR_DB, ORANGE, Drawn, hide_frame
from benchmarks.quality.judge import measure_psnr_db
from dqar_fx import Denoiser

CELL = 1.12
"""Side of a picture, in inches."""
HOW_TO_READ = (
    "A column is one class and one seed, a row one way to run the same model: look down a "
    f"column for what changes. {READING} Below a picture: its PSNR against the picture on top "
    f"of the column, the higher, the nearer; below {NEAR_DB} dB it is bold and orange."
)


@dataclass(frozen=True)
class Strip:
    """The pictures of one configuration.

    Attributes:
        name: Of the configuration.
        detail: How it reuses, in words.
        images: ``[pictures, channels, height, width]`` in [0, 1].
        psnr_db: Of each picture against the baseline's.
        whole_db: Of all pictures together.
    """

    name: str
    detail: str
    images: torch.Tensor
    psnr_db: tuple[float, ...]
    whole_db: float


def draw(studio: Studio) -> Drawn:
    """Draw the figure."""
    strips = list(generate_strips(studio))
    columns = len(studio.task.labels)
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


def generate_strips(studio: Studio) -> Iterator[Strip]:
    """Generate the pictures of all configurations in eager mode; the baseline's first."""
    pipe, task, steps = studio.pipe, studio.task, studio.options.steps
    original = pipe.transformer
    workshop = SharingWorkshop(original, "eager")
    contenders = list_configurations(steps, compiled=False, more=False)
    reference: torch.Tensor | None = None
    try:
        for contender in tqdm(contenders, desc="pictures"):
            pipe.transformer = workshop.build(contender)
            images = task.generate(pipe, contender.steps)
            reference = images if reference is None else reference
            yield Strip(
                contender.name,
                describe(contender, pipe.transformer),
                images,
                tuple(map(measure_psnr_db, images, reference)),
                measure_psnr_db(images, reference),
            )
    finally:
        pipe.transformer = original


def describe(contender: Contender, module: object) -> str:
    """What a configuration does, in words."""
    if not isinstance(module, Denoiser):
        return f"untransformed model,\n{contender.steps} steps"
    table = module.table
    oldest = int(table.ages[table.is_read].max(initial=0))
    parts = describe_reuse(contender.keep, contender.cache, table.reuse_ratio, oldest)
    return ",\n".join(parts)


def draw_picture(axes: Axes, picture: torch.Tensor, psnr_db: float) -> None:
    """Draw a picture with its PSNR below."""
    hide_frame(axes)
    pixels = picture.permute(1, 2, 0).squeeze().numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    is_far = psnr_db < NEAR_DB
    axes.text(
        0.5,
        -0.03,
        "" if math.isinf(psnr_db) else show_psnr(psnr_db),
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=9,
        color=ORANGE if is_far else FAINT,
        fontweight="bold" if is_far else "normal",
    )


def make_title(strips: Sequence[Strip]) -> str:
    """The finding: who is nearest, who is farthest."""
    worst, *_, best = sorted(strips[1:], key=lambda strip: strip.whole_db)
    return (
        f"Same seeds, same classes: {best.name} stays nearest to the untransformed pictures "
        f"({show_psnr(best.whole_db)}), {worst.name} strays farthest "
        f"({show_psnr(worst.whole_db)})"
    )


def make_caption(studio: Studio, strips: Sequence[Strip]) -> str:
    """The paragraph below the figure."""
    whole = ", ".join(f"{strip.name} {show_psnr(strip.whole_db)}" for strip in strips[1:])
    return (
        f"Pictures of {studio.model_name} with {studio.options.steps} steps of "
        f"{type(studio.pipe.scheduler).__name__} and guidance {studio.task.guidance:g}, in "
        "eager mode; the first row is the untransformed model. PSNR is the peak "
        f"signal-to-noise ratio; over all pictures: {whole}."
    )
