"""Example inputs of a denoiser: what its forward asks for, sized by its config.

The names are those that diffusers' transformers share; what is not known by name must be
given. Values do not matter, since nothing is run.
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

TEXT_WIDTHS = ("caption_channels", "joint_attention_dim", "text_dim", "cross_attention_dim")
"""Entries of a config that tell the width of the text, the first that is there."""
TEXT_TOKENS = {"PixArtTransformer2DModel": 120, "SD3Transformer2DModel": 333}
"""Tokens of text that the pipelines of these models give."""
MOST_TEXT_TOKENS, PACKED_SIZE, AXES = 512, 128, 3
GIVE = "give it with --input {name}=SHAPE:DTYPE, such as --input {name}=2x77x768:float32"


@dataclass(frozen=True)
class Sizes:
    """What the user says of the inputs.

    Attributes:
        batch: Samples in one call, guidance's included.
        size: Height and width of the latent; None for the config's.
        text_tokens: Number of tokens of text; None for the pipeline's.
        given: Inputs by name, instead of derived ones.
    """

    batch: int = 2
    size: int | None = None
    text_tokens: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def derive_inputs(model: nn.Module, sizes: Sizes) -> dict[str, Any]:
    """Keyword arguments of one call of a model.

    Raises:
        CaptureError: An input that the model requires is neither known nor given.
    """
    return InputDeriver(model, sizes).inputs()


class InputDeriver:
    """Derives inputs from one model's config and signature."""

    def __init__(self, model: nn.Module, sizes: Sizes) -> None:
        self.sizes = sizes
        self.name = type(model).__name__
        self.config: Mapping[str, Any] = dict(getattr(model, "config", {}))
        self.parameters = inspect.signature(model.forward).parameters
        parameter = next(model.parameters(), torch.empty(0))
        self.dtype, self.device = parameter.dtype, parameter.device
        self.known: dict[str, Callable[[], Any]] = {
            "hidden_states": self._latent,
            "timestep": self._timestep,
            "class_labels": lambda: self._zeros(sizes.batch, dtype=torch.long),
            "encoder_hidden_states": self._text,
            "encoder_attention_mask": lambda: self._zeros(sizes.batch, self._text_tokens),
            "pooled_projections": lambda: self._vector("pooled_projection_dim"),
            "guidance": self._guidance,
            "img_ids": lambda: self._zeros(self._packed_tokens, AXES),
            "txt_ids": lambda: self._zeros(self._text_tokens, AXES),
            "added_cond_kwargs": self._resolution,
        }

    def inputs(self) -> dict[str, Any]:
        """All of them; those that may be left out and are not known are."""
        unknown = [name for name in self.sizes.given if name not in self.parameters]
        if unknown:
            raise CaptureError(
                f"{self.name} has no input {unknown[0]!r}; its inputs are "
                f"{', '.join(self.parameters)}"
            )
        found = {}
        for name, parameter in self.parameters.items():
            value = self._value(name, parameter)
            if value is not None:
                found[name] = value
        return found

    def _value(self, name: str, parameter: inspect.Parameter) -> Any:
        if name in self.sizes.given:
            given = self.sizes.given[name]
            return given.to(self.device) if isinstance(given, torch.Tensor) else given
        if name in self.known:
            return self.known[name]()
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_variadic:
            raise CaptureError(
                f"{self.name}: no example is known for its input {name!r}: "
                + GIVE.format(name=name)
            )
        return None

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def _latent(self) -> torch.Tensor:
        channels = self.config.get("in_channels")
        size = self.sizes.size or self.config.get("sample_size")
        if isinstance(channels, int) and "img_ids" in self.parameters:
            return self._zeros(self.sizes.batch, self._packed_tokens, channels)
        if isinstance(channels, int) and isinstance(size, int):
            return self._zeros(self.sizes.batch, channels, size, size)
        raise CaptureError(
            f"{self.name}: the shape of its latent cannot be told from in_channels and "
            f"sample_size of its config, which are {channels!r} and {size!r}: give --size, or "
            "--input hidden_states=SHAPE:DTYPE, such as --input hidden_states=2x16x128x128"
        )

    @property
    def _packed_tokens(self) -> int:
        """Patches of 2x2 of the latent, which the pipeline packs."""
        return ((self.sizes.size or PACKED_SIZE) // 2) ** 2

    @property
    def _text_tokens(self) -> int:
        given = self.sizes.given.get("encoder_hidden_states")
        if isinstance(given, torch.Tensor):
            return int(given.shape[1])
        usual = TEXT_TOKENS.get(self.name, MOST_TEXT_TOKENS)
        return self.sizes.text_tokens or usual

    def _timestep(self) -> torch.Tensor:
        is_index = self.config.get("num_embeds_ada_norm") is not None
        dtype = torch.long if is_index else torch.float32
        return self._zeros(self.sizes.batch, dtype=dtype)

    def _text(self) -> torch.Tensor | None:
        widths = (self.config.get(name) for name in TEXT_WIDTHS)
        width = next((each for each in widths if isinstance(each, int)), None)
        if width is None:
            raise CaptureError(
                f"{self.name}: the width of its text is in none of "
                f"{', '.join(TEXT_WIDTHS)} of its config: "
                + GIVE.format(name="encoder_hidden_states")
            )
        return self._zeros(self.sizes.batch, self._text_tokens, width)

    def _vector(self, entry: str) -> torch.Tensor | None:
        width = self.config.get(entry)
        return self._zeros(self.sizes.batch, width) if isinstance(width, int) else None

    def _guidance(self) -> torch.Tensor | None:
        return self._zeros(self.sizes.batch) if self.config.get("guidance_embeds") else None

    def _resolution(self) -> dict[str, Any]:
        """PixArt's: sizes of pictures where the model was trained with them."""
        asks = self.config.get("use_additional_conditions")
        if asks is None:
            asks = self.config.get("sample_size") == PACKED_SIZE
        if not asks:
            return {"resolution": None, "aspect_ratio": None}
        batch = self.sizes.batch
        return {"resolution": self._zeros(batch, 2), "aspect_ratio": self._zeros(batch, 1)}


def input_of(text: str) -> tuple[str, Any]:
    """A converter for argparse: ``name=2x77x768:float32``, or ``name=none``.

    Raises:
        ArgumentTypeError: It is none of these.
    """
    name, _, rest = text.partition("=")
    shape, _, dtype_name = rest.partition(":")
    if name.isidentifier() and rest == "none":
        return name, None
    dtype = getattr(torch, dtype_name or "float32", None)
    sizes = shape.split("x") if shape else []
    all_sizes = all(size.isdecimal() for size in sizes)
    if not (name.isidentifier() and sizes and all_sizes and isinstance(dtype, torch.dtype)):
        raise argparse.ArgumentTypeError(
            "expected NAME=SHAPE:DTYPE such as guidance=2:float32 or ids=512x3, or NAME=none, "
            f"found {text!r}"
        )
    return name, torch.zeros([int(size) for size in sizes], dtype=dtype, device="meta")
