"""The pictures of every configuration of the ablation, from the same seeds."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from benchmarks.ablation.configurations import list_configurations
from benchmarks.ablation.workshop import SharingWorkshop
from benchmarks.figures.naming import describe_reuse
from benchmarks.figures.studio import Studio
from benchmarks.harness.contenders import Contender
from benchmarks.quality.judge import measure_psnr_db
from dqar_fx import Denoiser


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
