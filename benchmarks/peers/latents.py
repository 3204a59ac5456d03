"""Where a contender runs: the bench of a pipeline, or one without pictures.

A geometry has random weights and no VAE. Its "pictures" are final latents: those of the
pipeline's own loop (guidance in one batch, DDIM), without a decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from benchmarks.ablation.protocol import SEED, Protocol
from benchmarks.contenders.bench import Bench
from benchmarks.harness.geometry import CHANNELS, NUM_CLASSES
from benchmarks.harness.pipelines import DTYPES, Task
from benchmarks.peers.options import GEOMETRIES, Options


def set_up_bench(options: Options, lowering: str | Mapping[str, Any] = "regional") -> Bench:
    """The bench that the options name.

    Args:
        options: Of the command line.
        lowering: How dqar_fx compiles.

    Raises:
        InputError: The pipeline cannot be loaded.
    """
    if options.geometry is None:
        return Bench.of(options, lowering)
    dtype = DTYPES[options.dtype]
    model: Any = GEOMETRIES[options.geometry].build(SEED).to(options.device, dtype)
    scheduler = DDIMScheduler(clip_sample=False)  # type: ignore[no-untyped-call]
    pipe = SimpleNamespace(  # what a geometry has of a pipeline
        transformer=model,
        scheduler=scheduler,
        device=options.device,
        dtype=dtype,
        vae=nn.Identity(),
    )
    classes = {n: f"class {n}" for n in range(0, NUM_CLASSES, NUM_CLASSES // 10)}
    protocol = LatentProtocol(classes, tuple(classes), options.guidance)
    sizes = options.samples, options.steps, options.device
    return Bench(pipe, model, protocol, *sizes, lowering)


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
