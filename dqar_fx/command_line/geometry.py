"""The sizes of a model's inputs, told by its config and by the user."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

CHANNELS = ("in_channels", "in_visual_dim", "latent_channel", "latent_dim", "embedding_dim")
"""Entries of a config that tell the channels of the latent, the first that is there."""
HEIGHTS = ("sample_size", "sample_height")
FRAMES = ("video_length", "num_frames", "sample_frames")
TEXT_WIDTHS = (
    "encoder_hid_dim",
    "caption_channels",
    "joint_attention_dim",
    "text_dim",
    "text_embed_dim",
    "cap_feat_dim",
    "in_text_dim",
    "context_in_dim",
    "llm_features_dim",
    "text_hidden_dim",
    "text_in_dim",
    "dit_text_dim",
    "cross_attention_dim",
    "condition_dim",
    "embedding_dim",
    "encoder_hidden_size",
    "hidden_size",
)
"""Entries of a config that tell the width of the text, the first that is there."""
TEXT_TOKENS = {"PixArtTransformer2DModel": 120, "SD3Transformer2DModel": 333}
"""Tokens of text that the pipelines of these models give."""
MOST_TEXT_TOKENS, IMAGE_TOKENS = 512, 257
LATENT_SIZE, LATENT_FRAMES = 128, 21


class NoSizeError(Exception):
    """A config tells no size for what an input needs; says which entries were looked for."""


@dataclass(frozen=True)
class Sizes:
    """What the user says of the inputs.

    Attributes:
        batch: Samples in one call, guidance's included.
        size: Height and width of the latent, one number if they are equal; None for the
            config's. A sound's length.
        frames: Frames of the latent; None for the config's.
        text_tokens: Number of tokens of text; None for the pipeline's.
        given: Inputs by name, instead of derived ones.
    """

    batch: int = 2
    size: int | tuple[int, int] | None = None
    frames: int | None = None
    text_tokens: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


class Geometry:
    """Sizes by letter, and tensors of such sizes.

    A shape is a text of letters and of entries of the config, the first of several that is a
    number: ``"B L text_dim|cross_attention_dim"``. Letters are the methods' names below.
    """

    def __init__(self, model: nn.Module, sizes: Sizes) -> None:
        self.model, self.sizes, self.name = model, sizes, type(model).__name__
        self.config: Mapping[str, Any] = dict(getattr(model, "config", {}))
        self.parameters = inspect.signature(model.forward).parameters
        # the first one may be of those that stay in float32
        parameter = max(model.parameters(), key=torch.Tensor.numel, default=torch.empty(0))
        self.dtype, self.device = parameter.dtype, parameter.device
        self._draws = torch.Generator().manual_seed(0)
        self.letters: dict[str, Callable[[], int]] = {
            "B": lambda: sizes.batch,
            "C": lambda: self.channels,
            "D": lambda: self.entry(*TEXT_WIDTHS),
            "F": lambda: self.frames,
            "H": lambda: self.height,
            "W": lambda: self.width,
            "I": lambda: IMAGE_TOKENS,
            "L": lambda: self.text_tokens,
            "N": lambda: self.packed_tokens,
            "V": lambda: self.frames * self.height * self.width,
            "X": lambda: len(self.config.get("axes_dims_rope") or (0, 0, 0)),
        }

    # ---- sizes -----------------------------------------------------------------------------

    def entry(self, *names: str) -> int:
        """The first of some entries that is a number, or a list of which the first is one.

        Raises:
            NoSizeError: None of them is.
        """
        for name in names:
            value = self.config.get(name)
            first = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(first, int):
                return first
        raise NoSizeError(f"none of {', '.join(names)} of its config is a number")

    def entry_or(self, default: int, *names: str) -> int:
        """The first of some entries that is a number, or a default."""
        try:
            return self.entry(*names)
        except NoSizeError:
            return default

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        return self.entry(*CHANNELS)

    @property
    def height(self) -> int:
        """Height of the latent; a sound's length."""
        size = self.sizes.size
        if size is None:
            return self.entry_or(LATENT_SIZE, *HEIGHTS)
        return size if isinstance(size, int) else size[0]

    @property
    def width(self) -> int:
        """Width of the latent."""
        size = self.sizes.size
        if size is not None:
            return size if isinstance(size, int) else size[1]
        sample = self.config.get("sample_size")
        if isinstance(sample, list | tuple):
            return int(sample[-1])
        return self.entry_or(self.height, "sample_width")

    @property
    def frames(self) -> int:
        """Frames of the latent, of which one may stand for several of the video."""
        frames = self.sizes.frames or self.entry_or(LATENT_FRAMES, *FRAMES)
        ratio = self.config.get("temporal_compression_ratio")
        if ratio is None or self.sizes.frames:
            return frames
        return int((frames - 1) // ratio + 1)

    @property
    def patches(self) -> tuple[int, int, int]:
        """Patches of the latent in each direction: frames, height, width."""
        patch = self.config.get("patch_size") or 1
        sizes = patch if isinstance(patch, list | tuple) else (patch, patch)
        time = sizes[0] if len(sizes) > 2 else self.config.get("patch_size_t") or 1
        return self.frames // time, self.height // sizes[-2], self.width // sizes[-1]

    @property
    def packed(self) -> tuple[int, int]:
        """Rows and columns of patches of 2x2, which the pipeline packs."""
        return self.height // 2, self.width // 2

    @property
    def packed_tokens(self) -> int:
        """Number of such patches."""
        return self.packed[0] * self.packed[1]

    @cached_property
    def text_tokens(self) -> int:
        """Tokens of text."""
        given = self.sizes.given.get("encoder_hidden_states")
        if isinstance(given, torch.Tensor):
            return int(given.shape[1])
        usual = TEXT_TOKENS.get(self.name, MOST_TEXT_TOKENS)
        return self.sizes.text_tokens or self.entry_or(usual, "max_text_seq_length")

    # ---- tensors ---------------------------------------------------------------------------

    def shape(self, text: str) -> list[int]:
        """The numbers of a shape.

        Raises:
            NoSizeError: The config does not tell one of them.
        """
        return [self._number(word) for word in text.split()]

    def _number(self, word: str) -> int:
        if word.isdecimal():
            return int(word)
        return self.letters[word]() if word in self.letters else self.entry(*word.split("|"))

    def normal(self, text: str) -> torch.Tensor:
        """Random values, of the parameters' dtype."""
        shape = self.shape(text)
        if self.device.type == "meta":
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        return torch.randn(shape, generator=self._draws).to(self.device, self.dtype)

    def full(self, text: str, value: float, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One value everywhere."""
        return torch.full(
            self.shape(text), value, dtype=dtype or self.dtype, device=self.device
        )

    def counting(self, *sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """All places of a grid in their order: one row each, one column per direction."""
        ranges = [torch.arange(size, device=self.device, dtype=dtype) for size in sizes]
        return torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1).flatten(0, -2)
