"""Models with random weights on the device, and the calls of their trajectories."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.accelerator.scales import Scale
from benchmarks.harness.geometry import Geometry, draw_timesteps

Call = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model, and what it is called with.

    Attributes:
        name: Of the geometry, with its batch.
        model: On the device, in evaluation mode.
        latent: What it denoises, of each call another one; shape, dtype and device.
        rest: Its other arguments but the timestep; the same at all steps of a run.
        times: Makes the timesteps of a trajectory, a descending tensor.
    """

    name: str
    model: nn.Module
    latent: torch.Tensor
    rest: Mapping[str, Any]
    times: Callable[[int], torch.Tensor]

    def calls(self, steps: int) -> Iterator[Call]:
        """Keyword arguments of each step: as stock pipelines call."""
        batch = self.latent.shape[0]
        for timestep in self.times(steps).to(self.latent.device):
            latent = torch.randn_like(self.latent)
            yield {"hidden_states": latent, "timestep": timestep.expand(batch), **self.rest}


def make_dit(
    name: str, geometry: Geometry, device: torch.device, dtype: torch.dtype
) -> Subject:
    """A class-conditional DiT."""
    model = place(geometry.build, device, dtype)
    latent = geometry.draw_latent().to(device, dtype)
    labels = {"class_labels": geometry.labels().to(device)}
    return Subject(f"{name}, batch {geometry.batch}", model, latent, labels, draw_timesteps)


def make_flux(scale: Scale, device: torch.device, batch: int = 1) -> Subject:
    """Flux as a scale has it, with random weights."""
    keywords = dict(scale.flux)
    tokens, text = keywords.pop("tokens"), keywords.pop("text")
    build: Any = FluxTransformer2DModel
    model = place(lambda: build(**keywords), device, scale.dtype)
    rest = {
        "encoder_hidden_states": torch.randn(batch, text, keywords["joint_attention_dim"]),
        "pooled_projections": torch.randn(batch, keywords["pooled_projection_dim"]),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(text, 3),
    }
    latent = torch.empty(batch, tokens, keywords["in_channels"])
    return Subject(
        f"FLUX.1-like, batch {batch}",
        model,
        latent.to(device, scale.dtype),
        move(rest, device, scale.dtype),
        lambda steps: torch.linspace(1, 0.05, steps),
    )


def make_wan(scale: Scale, device: torch.device, batch: int = 1) -> Subject:
    """Wan as a scale has it, with random weights."""
    keywords = dict(scale.wan)
    size, text = keywords.pop("latent"), keywords.pop("text")
    build: Any = WanTransformer3DModel
    model = place(lambda: build(**keywords), device, scale.dtype)
    rest = {"encoder_hidden_states": torch.randn(batch, text, keywords["text_dim"])}
    latent = torch.empty(batch, keywords["in_channels"], *size)
    return Subject(
        f"Wan-1.3B-like, batch {batch}",
        model,
        latent.to(device, scale.dtype),
        move(rest, device, scale.dtype),
        draw_timesteps,
    )


def place(
    build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A model made on the device, where drawing its weights takes no time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = build()
    # not the model's own ``to``, which warns of modules that it keeps in float32
    return nn.Module.to(model.eval().requires_grad_(False), device, dtype)


def move(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors of any structure on a device; those of real numbers in a dtype."""

    def one(value: torch.Tensor) -> torch.Tensor:
        return value.to(device, dtype if value.is_floating_point() else None)

    return pytree.tree_map_only(torch.Tensor, one, tree)


@contextmanager
def waits_refused(device: torch.device) -> Iterator[None]:
    """Raise, while inside, where the host waits for a CUDA device; nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
