"""Models with random weights on the device, and the calls of their trajectories."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.accelerator.abilities import ask
from benchmarks.accelerator.scales import Scale
from benchmarks.harness.geometry import NUM_CLASSES, Geometry, draw_timesteps
from benchmarks.stock.tiny import settled

Call = dict[str, Any]


TINY = Geometry(3, 64, 4, 16)


@dataclass(frozen=True)
class Subject:
    """A model, and what it is called with.

    Attributes:
        name: Of the geometry, with its batch.
        model: On the device, in evaluation mode.
        latent: What it denoises, of each call another one; shape, dtype and device.
        prompt: Draws arguments that differ from run to run, and stay within one.
        fixed: Arguments that never change.
        times: Makes the timesteps of a trajectory, a descending tensor.
    """

    name: str
    model: nn.Module
    latent: torch.Tensor
    prompt: Callable[[], Mapping[str, torch.Tensor]]
    fixed: Mapping[str, torch.Tensor]
    times: Callable[[int], torch.Tensor]

    def calls(self, steps: int) -> Iterator[Call]:
        """Keyword arguments of each step of a run with a prompt of its own.

        As stock pipelines call: a timestep is an element of one tensor, and what belongs to
        the prompt is the same tensor at all steps.
        """
        rest = move(self.prompt(), self.latent.device, self.latent.dtype)
        for timestep in self.times(steps).to(self.latent.device):
            latent = torch.randn_like(self.latent)
            yield {
                "hidden_states": latent,
                "timestep": timestep.expand(latent.shape[0]),
                **rest,
                **self.fixed,
            }


def make_dit(
    name: str,
    geometry: Geometry,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_settled: bool = False,
) -> Subject:
    """A class-conditional DiT; settled, it has weights that let every part matter."""
    if is_settled:  # they are drawn by a generator of the CPU, the same for all devices
        model = nn.Module.to(settled(geometry.build()), device, dtype)
    else:
        model = build_there(geometry.build, device, dtype)
    latent = geometry.draw_latent().to(device, dtype)

    def draw_prompt() -> dict[str, torch.Tensor]:
        return {"class_labels": torch.randint(NUM_CLASSES, (geometry.batch,))}

    name = f"{name}, batch {geometry.batch}"
    return Subject(name, model, latent, draw_prompt, {}, draw_timesteps)


def make_tiny(device: torch.device) -> Subject:
    """A small DiT in float32 whose parts all matter."""
    return make_dit("tiny", TINY, device, torch.float32, is_settled=True)


def make_flux(scale: Scale, device: torch.device, batch: int = 1) -> Subject:
    """Flux as a scale has it, with random weights."""
    keywords = dict(scale.flux)
    tokens, text = keywords.pop("tokens"), keywords.pop("text")
    build: Any = FluxTransformer2DModel
    model = build_there(lambda: build(**keywords), device, scale.dtype)
    fixed = {"img_ids": torch.zeros(tokens, 3), "txt_ids": torch.zeros(text, 3)}

    def draw_prompt() -> dict[str, torch.Tensor]:
        return {
            "encoder_hidden_states": torch.randn(batch, text, keywords["joint_attention_dim"]),
            "pooled_projections": torch.randn(batch, keywords["pooled_projection_dim"]),
        }

    return Subject(
        f"FLUX.1-like, batch {batch}",
        model,
        torch.empty(batch, tokens, keywords["in_channels"]).to(device, scale.dtype),
        draw_prompt,
        move(fixed, device, scale.dtype),
        lambda steps: torch.linspace(1, 0.05, steps),
    )


def make_wan(scale: Scale, device: torch.device, batch: int = 1) -> Subject:
    """Wan as a scale has it, with random weights."""
    keywords = dict(scale.wan)
    size, text = keywords.pop("latent"), keywords.pop("text")
    build: Any = WanTransformer3DModel
    model = build_there(lambda: build(**keywords), device, scale.dtype)

    def draw_prompt() -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": torch.randn(batch, text, keywords["text_dim"])}

    latent = torch.empty(batch, keywords["in_channels"], *size).to(device, scale.dtype)
    name = f"Wan-1.3B-like, batch {batch}"
    return Subject(name, model, latent, draw_prompt, {}, draw_timesteps)


def build_there(
    build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A model made on the device, where drawing its weights takes no time.

    Tables of positions are made in float64: where there is none, all is made on the CPU.
    """
    torch.manual_seed(0)
    with torch.device(device if ask(device).float64 else "cpu"):
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
