"""Where a contender runs: the bench of a pipeline, or one without pictures.

A geometry has random weights and no VAE. Its "pictures" are final latents: those of the
pipeline's own loop (guidance in one batch, DDIM), without a decoder.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from benchmarks.ablation.protocol import SEED, Protocol
from benchmarks.harness.geometry import CHANNELS, NUM_CLASSES, Geometry
from benchmarks.harness.pipelines import DTYPES, Task, load_pipeline, name_classes
from benchmarks.pareto.bench import Bench


@dataclass(frozen=True)
class Sized:
    """A geometry, and what is measured with it unless asked otherwise."""

    geometry: Geometry
    steps: int
    repeats: int

    @property
    def defaults(self) -> dict[str, int]:
        """Options that are not given."""
        return {"steps": self.steps, "samples": 1, "repeats": self.repeats, "images": 0}


GEOMETRIES = {
    "DiT-S/2": Sized(Geometry(12, 384, 6), steps=20, repeats=5),
    "DiT-XL/2": Sized(Geometry(28, 1152, 16), steps=12, repeats=3),
}
"""Numbers of steps that let tables of every second, third and fourth step end as at 50."""


class Stage(Bench):
    """A bench with a copy of the model that is made before anything is measured."""

    def prepare_clone(self) -> None:
        """Make the copy: a rival's hooks need one, which is not its memory."""
        self.made["clone"] = copy.deepcopy(self.original)

    def clone(self) -> nn.Module:
        """The copy that is there, or another one."""
        made = self.made.pop("clone", None)
        return super().clone() if made is None else made


@dataclass
class LatentPipe:
    """What a geometry has of a pipeline.

    Attributes:
        transformer: What is called.
        scheduler: DDIM with the betas that DiT was trained with.
        device: Where it runs.
        dtype: Of the latent.
        vae: None of it: no parameters.
    """

    transformer: Any
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    vae: nn.Module


@dataclass(frozen=True)
class LatentTask(Task):
    """Final latents, one per seed."""

    @torch.no_grad()
    def generate(self, pipe: Any, num_steps: int) -> torch.Tensor:
        """Latents ``[seeds, channels, height, width]``, float32 on the CPU."""
        size = pipe.transformer.config.sample_size
        draw = partial(torch.randn, (1, CHANNELS, size, size))
        noise = [draw(generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        latent = torch.cat(noise).to(pipe.device, pipe.dtype)
        null = [NUM_CLASSES] * len(self.seeds)
        labels = torch.tensor([*self.labels, *null], device=pipe.device)
        pipe.scheduler.set_timesteps(num_steps, device=pipe.device)
        for timestep in pipe.scheduler.timesteps:
            both = torch.cat((latent, latent))
            output = pipe.transformer(
                both, timestep=timestep.expand(len(both)), class_labels=labels
            )
            own, other = output.sample[:, :CHANNELS].chunk(2)
            guided = other + self.guidance * (own - other)
            latent = pipe.scheduler.step(guided, timestep, latent).prev_sample
        return latent.float().cpu()


class LatentProtocol(Protocol):
    """Which latents: the seeds and classes of the pictures' protocol."""

    def task(self, group: int, start: int, count: int) -> Task:
        """Latents of a group: ``count`` of them, from number ``start`` on."""
        return LatentTask(**vars(super().task(group, start, count)))


def set_stage(options: Any, lowering: str | Mapping[str, Any] = "regional") -> Stage:
    """The stage that the options name.

    Args:
        options: Of the command line.
        lowering: How dqar_fx compiles.

    Raises:
        InputError: The pipeline cannot be loaded.
    """
    if options.geometry is None:
        pipe = load_pipeline(options)
        names = name_classes(pipe)
        protocol = Protocol(names, tuple(sorted(names)), options.guidance)
    else:
        pipe = build_latent_pipe(options)
        numbers = range(0, NUM_CLASSES, NUM_CLASSES // 10)
        classes = {number: f"class {number}" for number in numbers}
        protocol = LatentProtocol(classes, tuple(classes), options.guidance)
    return Stage(
        pipe,
        pipe.transformer,
        protocol,
        options.samples,
        options.steps,
        options.device,
        lowering,
    )


def build_latent_pipe(options: Any) -> LatentPipe:
    """A geometry on its device, with its scheduler."""
    dtype = DTYPES[options.dtype]
    model = GEOMETRIES[options.geometry].geometry.build(SEED).to(options.device, dtype)
    scheduler = DDIMScheduler(clip_sample=False)  # type: ignore[no-untyped-call]
    return LatentPipe(model, scheduler, options.device, dtype, nn.Identity())
