"""A class-conditional DiT of any size with random weights, for what needs no pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Annotated, Any, Self

import torch
import tyro
from diffusers import DiTTransformer2DModel
from torch import nn

from benchmarks.harness.errors import InputError
from benchmarks.harness.options import Count, CpuOptions

PATCH, CHANNELS, NUM_CLASSES = 2, 4, 1000


@dataclass(frozen=True)
class Geometry:
    """Size of a DiT, by default DiT-S/2 on 256x256 pictures; DiT-XL/2: 28, 1152, 16."""

    layers: Count = 12
    """Blocks."""
    width: Count = 384
    """Channels of a token."""
    heads: Count = 6
    """Of attention."""
    tokens: Count = 256
    """Patches of a picture, a square number."""
    batch: Count = 2
    """Samples per call."""

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads, "
            f"{self.tokens} tokens, batch {self.batch}"
        )

    @property
    def latent_size(self) -> int:
        """Height and width of the latent."""
        return PATCH * isqrt(self.tokens)

    def build(self, seed: int = 0) -> nn.Module:
        """The model, in float32 on the CPU."""
        torch.manual_seed(seed)
        model: Any = DiTTransformer2DModel(  # type: ignore[no-untyped-call]
            num_attention_heads=self.heads,
            attention_head_dim=self.width // self.heads,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=self.layers,
            sample_size=self.latent_size,
            patch_size=PATCH,
            num_embeds_ada_norm=NUM_CLASSES,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
            activation_fn="gelu-approximate",
            attention_bias=True,
        )
        built: nn.Module = model.eval().requires_grad_(False)
        return built

    def check(self) -> None:
        """Raise unless there is such a DiT.

        Raises:
            InputError: The tokens are no square, or the heads do not share the width.
        """
        if isqrt(self.tokens) ** 2 != self.tokens:
            raise InputError(f"--tokens must be a square number, found {self.tokens}")
        if self.width % self.heads:
            raise InputError(f"--width {self.width} is no multiple of --heads {self.heads}")

    def draw_latent(self) -> torch.Tensor:
        """A latent of noise."""
        return torch.randn(self.batch, CHANNELS, self.latent_size, self.latent_size)

    def labels(self) -> torch.Tensor:
        """A class for each sample."""
        return torch.arange(self.batch) % NUM_CLASSES

    def example_call(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of one call, as stock pipelines pass them."""
        return {
            "hidden_states": self.draw_latent(),
            "timestep": torch.zeros(self.batch, dtype=torch.long),
            "class_labels": self.labels(),
        }

    def draw_calls(
        self, num_steps: int, device: torch.device | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Keyword arguments of each call of a trajectory; the labels are one tensor."""
        labels = self.labels().to(device)
        for timestep in draw_timesteps(num_steps).to(device):
            yield {
                "hidden_states": self.draw_latent().to(device),
                "timestep": timestep.expand(self.batch),
                "class_labels": labels,
            }


@dataclass(frozen=True)
class GeometryOptions(CpuOptions):
    """Options of a model with random weights, and of threads."""

    geometry: Annotated[Geometry, tyro.conf.OmitArgPrefixes] = Geometry()

    def settle(self) -> Self:
        """The same, if there is such a model."""
        self.geometry.check()
        return super().settle()


def draw_timesteps(num_steps: int) -> torch.Tensor:
    """Timesteps of a trajectory as schedulers have them: one descending tensor."""
    return torch.linspace(999, 0, num_steps).round().long()
