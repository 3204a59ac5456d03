"""Figure: the same seeds, untransformed and with every configuration of the ablation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from tqdm import tqdm

from benchmarks.ablation.configurations import list_configurations
from benchmarks.contenders import Contender, Workshop
from benchmarks.figures.studio import Studio
from benchmarks.figures.style import FAINT, ORANGE, Drawn, hide_frame, new_figure
from benchmarks.quality import measure_psnr_db
from dqar_fx import Denoiser

CELL = 1.12
"""Side of a picture, in inches."""
FAR_DB = 25
"""PSNR below which a picture is marked."""


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
    columns = len(studio.labels)
    width, height = max(6.4, 2.6 + CELL * columns), 1.5 + (CELL + 0.26) * len(strips)
    figure = new_figure(make_title(strips), width, height)
    panels = figure.subplots(len(strips), columns, squeeze=False)
    for row, strip in zip(panels, strips, strict=True):
        for axes, picture, psnr_db in zip(row, strip.images, strip.psnr_db, strict=True):
            draw_picture(axes, picture, psnr_db)
        row[0].annotate(
            f"{strip.name}\n{strip.detail}",
            (-0.12, 0.5),
            xycoords="axes fraction",
            ha="right",
            va="center",
            fontsize=10.5,
        )
    for axes, name, seed in zip(panels[0], studio.task.names, studio.task.seeds, strict=True):
        axes.set_title(f"{name}\nseed {seed}", loc="center", fontsize=9.5)
    return Drawn(figure, make_caption(studio, strips))


def generate_strips(studio: Studio) -> Iterator[Strip]:
    """Generate the pictures of all configurations in eager mode; the baseline's first."""
    pipe, task, steps = studio.pipe, studio.task, studio.options.steps
    original = pipe.transformer
    modules = Modules(Workshop(original, "eager"))
    contenders = list_configurations(steps, compiled=False, more=False)
    reference: torch.Tensor | None = None
    try:
        for contender in tqdm(contenders, desc="pictures"):
            pipe.transformer = modules.build(contender)
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


class Modules:
    """Builds what contenders run; those with one kind of cache share what was captured."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._known: dict[tuple[str, str], Denoiser] = {}

    def build(self, contender: Contender) -> object:
        """What runs in the pipeline."""
        known = self._known.get((contender.keep, contender.cache))
        if known is not None and contender.schedule is not None:
            return known.with_schedule(contender.schedule)
        module = self._workshop.build(contender)
        if isinstance(module, Denoiser):
            self._known[contender.keep, contender.cache] = module
        return module


def describe(contender: Contender, module: object) -> str:
    """How a configuration reuses, in words."""
    if not isinstance(module, Denoiser):
        return f"untransformed,\n{contender.steps} steps"
    kept = "outputs" if contender.keep == "output" else "K and V"
    return f"{kept} in {contender.cache},\n{module.table.reuse_ratio:.0%} reused"


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
    is_far = psnr_db < FAR_DB
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
        f"against the picture on top of its column; less than {FAR_DB} dB is orange. Over all "
        f"pictures: {whole}."
    )
