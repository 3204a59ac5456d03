"""A class-conditional DiT of any size with random weights, for what needs no pictures."""

import argparse
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from benchmarks.command_line import Parser, at_least

PATCH, CHANNELS, NUM_CLASSES = 2, 4, 1000


@dataclass(frozen=True)
class Geometry:
    """Size of a DiT, by default DiT-S/2 on 256x256 pictures.

    Attributes:
        layers: Blocks.
        width: Channels of a token.
        heads: Of attention.
        tokens: Patches of a picture, a square number.
        batch: Samples per call.
    """

    layers: int = 12
    width: int = 384
    heads: int = 6
    tokens: int = 256
    batch: int = 2

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

    def draw_latent(self) -> torch.Tensor:
        """A latent of noise."""
        return torch.randn(self.batch, CHANNELS, self.latent_size, self.latent_size)

    def labels(self) -> torch.Tensor:
        """A class for each sample."""
        return torch.arange(self.batch) % NUM_CLASSES


def draw_timesteps(num_steps: int) -> torch.Tensor:
    """Timesteps of a trajectory as schedulers have them: one descending tensor."""
    return torch.linspace(999, 0, num_steps).round().long()


def add_geometry(parser: Parser) -> None:
    """Options of the geometry, and of threads."""
    group = parser.add_argument_group("geometry (DiT-XL/2: 28 layers, width 1152, 16 heads)")
    for name, default in Geometry().__dict__.items():
        group.add_argument(f"--{name}", type=at_least(1), default=default, help=f"({default})")
    parser.add_argument("--threads", type=at_least(1), help="CPU threads (PyTorch's default)")


def read_geometry(parser: Parser, args: argparse.Namespace) -> Geometry:
    """The geometry of parsed options; sets the threads."""
    if isqrt(args.tokens) ** 2 != args.tokens:
        parser.error(f"--tokens must be a square number, found {args.tokens}")
    if args.width % args.heads:
        parser.error(f"--width {args.width} is no multiple of --heads {args.heads}")
    if args.threads:
        torch.set_num_threads(args.threads)
    names = Geometry.__dataclass_fields__
    return Geometry(**{name: getattr(args, name) for name in names})
