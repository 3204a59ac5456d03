"""Every transformer and UNet that diffusers exports, each with a small configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.stock.tiny import settled
from dqar_fx.command_line.example_inputs import derive_inputs
from dqar_fx.command_line.geometry import Sizes

FOLDER = Path(__file__).parent
WORDS = ("Transformer", "UNet")
"""What the names of such classes have in them."""
LATENTS = (
    "hidden_states",
    "sample",
    "x",
    "audio_hidden_states",
    "vision_tokens",
    "bb_ca",
    "local_latents",
)
"""Inputs that are denoised: new at each step."""
TIMES = (
    "timestep",
    "timesteps",
    "t",
    "timestep_r",
    "r_timestep",
    "timestep_ratio",
    "vision_timesteps",
    "bb_ca_time",
    "local_latents_time",
)
"""Inputs that fall from step to step."""
TEXT_TOKENS, FALL = 7, 0.1


@dataclass(frozen=True)
class Specimen:
    """A class, and a small configuration of it.

    Attributes:
        name: The class as diffusers exports it.
        config: Arguments of its constructor, as a config file has them.
        sizes: Sizes of its inputs that the config does not tell.
        streams: As for `benchmarks.zoo.oracle.Oracle`.
    """

    name: str
    config: Mapping[str, Any]
    sizes: Sizes
    streams: Mapping[str, Sequence[str]]

    def make(self) -> nn.Module:
        """A new model, with weights that let attention matter."""
        torch.manual_seed(1)  # of buffers that are drawn
        return settled(getattr(diffusers, self.name).from_config(dict(self.config)))

    def inputs(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Keyword arguments of the call at a step: latents and timesteps change, no others."""
        inputs = derive_inputs(model, self.sizes)
        draws = torch.Generator().manual_seed(1000 + step)
        for name, value in inputs.items():
            if name in LATENTS:
                inputs[name] = pytree.tree_map(
                    lambda each: torch.randn(each.shape, generator=draws), value
                )
            if name in TIMES:
                inputs[name] = (value * (1 - FALL * step)).to(value.dtype)
        return inputs


def find_exports() -> list[str]:
    """Names of all transformers and UNets that diffusers exports."""
    named = (name for name in dir(diffusers) if any(word in name for word in WORDS))
    return [name for name in named if is_model(getattr(diffusers, name))]


def is_model(value: object) -> bool:
    """Whether it is a class of models, for which its parts are installed."""
    return isinstance(value, type) and issubclass(value, ModelMixin)


@cache
def specimens() -> dict[str, Specimen]:
    """By class, in the order of the file."""
    table = tomllib.loads((FOLDER / "configurations.toml").read_text("utf-8"))
    return {name: read(name, dict(entries)) for name, entries in table.items()}


def read(name: str, config: dict[str, Any]) -> Specimen:
    """One entry of the file."""
    sizes, streams = config.pop("sizes", {}), config.pop("streams", {})
    return Specimen(name, config, Sizes(text_tokens=TEXT_TOKENS, **sizes), streams)
