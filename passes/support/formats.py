"""Storage formats of the slots: how a kept value is written down and read again.

| name | stored as                        | error of one round trip of a value v      |
|------|----------------------------------|-------------------------------------------|
| same | the site's dtype                 | none                                      |
| fp16 | float16                          | 2**-11 |v|, at least 2**-25; range 65504  |
| bf16 | bfloat16                         | 2**-8 |v|, at least 2**-134; range 3e38   |
| int8 | integers of -127 to 127, a scale | m / 252                                   |
| fp8  | float8 e4m3, a scale             | 2**-3.9 |v|, at least m / 2**18           |

Of numbers that are spread as a site's outputs are, the root mean square of the error is 2.1e-4
of that of the numbers in fp16, 1.7e-3 in bf16, 8e-3 in int8 and 2.5e-2 in fp8: `rounding`.

m is the largest magnitude that shares v's scale: per token (over channels) in ``int8`` and
``fp8``, per channel (over tokens) in ``int8-per-channel``. Scales are bfloat16, so that eight
bits stay eight bits for small heads too; where m is below 2**-100, zero is kept. Reading gives
the site's dtype, which rounds once more.

A value that is not finite is never kept silently: every lossy format has a flag, which writing
sets and nothing clears but `Slots`, and integers are read as NaN where their scale is none.

A format is what `write` and `read` say, in plain tensor operations: they are traced into the
graph, so that a compiler fuses them with what produces and what consumes the value.

Source: DQAR report, "K/V caching" (symmetric int8); KIVI, arXiv 2402.02750 (per channel or
per token); Micikevicius et al. 2022, arXiv 2209.05433 (e4m3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from .vocabulary import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN, CHANNEL = -1, -2
"""The dimension that shares a scale: channels of one token, or tokens of one channel."""
SMALLEST_KEPT = 2.0**-100
"""Where no magnitude reaches this, zero is kept: a scale would leave float32's range."""
USUAL_ERROR = math.sqrt(0.375 / math.log(2) / 3)
"""Root mean square by bound, for errors that are spread evenly up to half a unit in the last
place, and magnitudes that are spread evenly in their logarithm between powers of two."""


class CacheFormat(Protocol):
    """How a value is kept: what `transform` takes as ``cache``."""

    @property
    def name(self) -> str:
        """The name that ``transform(cache=...)`` takes."""

    @property
    def rounding(self) -> float:
        """The error of one round trip that is usual: root mean square, relative to values."""

    def specs(self, kept: TensorSpec) -> tuple[TensorSpec, ...]:
        """The buffers that keep a value; the flag, if there is one, last."""

    def write(self, value: torch.Tensor, buffers: Sequence[torch.Tensor]) -> None:
        """Keep a value, in place."""

    def read(self, buffers: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The value again, in the site's dtype."""

    def bound(self, value: torch.Tensor) -> torch.Tensor:
        """The stated error of one round trip, absolute, per element; float64."""


@dataclass(frozen=True)
class ExactFormat:
    """Keeps every bit of a value."""

    name: str = "same"
    rounding: float = 0.0

    def specs(self, kept: TensorSpec) -> tuple[TensorSpec, ...]:
        """The only buffer, which has the value's own layout."""
        return (kept,)

    def write(self, value: torch.Tensor, buffers: Sequence[torch.Tensor]) -> None:
        """Copy the value."""
        buffers[0].copy_(value)

    def read(self, buffers: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The buffer itself."""
        del dtype  # is the buffer's own
        return buffers[0]

    def bound(self, value: torch.Tensor) -> torch.Tensor:
        """Nothing is lost: zeros."""
        return torch.zeros_like(value, dtype=torch.float64)


@dataclass(frozen=True)
class CastFormat:
    """Keeps another floating-point dtype.

    Attributes:
        name: The name of the format.
        dtype: The dtype of the buffer.
        relative_error: The bound for a normal number, relative to it.
        absolute_error: The bound for a smaller number.
    """

    name: str
    dtype: torch.dtype
    relative_error: float
    absolute_error: float

    @property
    def rounding(self) -> float:
        """That of magnitudes that are spread evenly in their logarithm."""
        return USUAL_ERROR * self.relative_error

    def specs(self, kept: TensorSpec) -> tuple[TensorSpec, ...]:
        """The value and the flag."""
        return replace(kept, dtype=self.dtype), flag_spec(kept.device)

    def write(self, value: torch.Tensor, buffers: Sequence[torch.Tensor]) -> None:
        """Round the value; what overflows becomes infinite and is flagged."""
        kept, flag = buffers
        narrow = value.to(self.dtype)
        kept.copy_(narrow)
        # asked of the value: a compiler may take it for what was rounded
        raise_flag(flag, value.float().abs() < first_beyond(self.dtype, value.dtype))

    def read(self, buffers: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The value, widened to the site's dtype."""
        return buffers[0].to(dtype)

    def bound(self, value: torch.Tensor) -> torch.Tensor:
        """The bound grows with an element's magnitude."""
        return (self.relative_error * value.double().abs()).clamp(min=self.absolute_error)


@dataclass(frozen=True)
class ScaledFormat:
    """Keeps eight bits and a scale per token or per channel.

    Attributes:
        name: The name of the format.
        dtype: The dtype of the buffer.
        largest: The largest number that is stored: a scale maps the largest magnitude to it.
        shares: The dimension that shares a scale.
        relative_error: The bound for an element, relative to it.
        step_error: The least error, relative to the largest magnitude.
        rounding: The error that is usual, relative to the values: root mean square.
    """

    name: str
    dtype: torch.dtype
    largest: float
    shares: int
    relative_error: float
    step_error: float
    rounding: float
    scale_dtype: ClassVar[torch.dtype] = torch.bfloat16

    def specs(self, kept: TensorSpec) -> tuple[TensorSpec, ...]:
        """The numbers in the value's layout, one scale per group, and the flag."""
        shape = list(kept.shape)
        shape[self._shared(len(shape))] = 1
        scales = TensorSpec.of(torch.empty(shape, dtype=self.scale_dtype, device="meta"))
        return (
            replace(kept, dtype=self.dtype),
            replace(scales, device=kept.device),
            flag_spec(kept.device),
        )

    def write(self, value: torch.Tensor, buffers: Sequence[torch.Tensor]) -> None:
        """Divide the value by its scale and round."""
        kept, scales, flag = buffers
        wide = value.float()
        top = wide.abs().amax(self._shared(wide.dim()), keepdim=True)
        scale = torch.where(top < SMALLEST_KEPT, 0.0, top / self.largest)
        step = round_to_bfloat16(torch.where(top < torch.inf, scale, torch.nan))
        numbers = wide * torch.where(step > 0, 1 / step, 0.0)
        if not self.dtype.is_floating_point:
            numbers = numbers.round()
        kept.copy_(numbers.clamp(-self.largest, self.largest).to(self.dtype))
        scales.copy_(step)
        raise_flag(flag, top < torch.inf)

    def read(self, buffers: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The numbers times their scale; NaN where the scale is not finite."""
        kept, scales, _ = buffers
        highest = torch.finfo(dtype).max  # a rounded scale may lead just beyond
        return (kept.float() * scales.float()).clamp(-highest, highest).to(dtype)

    def bound(self, value: torch.Tensor) -> torch.Tensor:
        """The bound grows with an element's magnitude and with the largest of its group."""
        size = value.double().abs()
        top = size.amax(self._shared(size.dim()), keepdim=True).expand_as(size)
        error = torch.maximum(self.relative_error * size, self.step_error * top)
        kind = torch.finfo(value.dtype)  # reading rounds to it; subnormals in even steps
        rounding = (kind.eps * top).clamp(min=kind.eps * kind.tiny)
        return torch.where(top < SMALLEST_KEPT, top, error + rounding)

    def _shared(self, num_dims: int) -> int:
        """The dimension that shares a scale; a vector is one token."""
        return self.shares if num_dims >= -self.shares else TOKEN


def flag_spec(device: torch.device) -> TensorSpec:
    """The flag: whether anything that was kept was not finite."""
    return TensorSpec((), (), torch.bool, device)


def is_flag(spec: TensorSpec) -> bool:
    """Whether a buffer is a flag; no site keeps truth values."""
    return spec.dtype == torch.bool


def raise_flag(flag: torch.Tensor, is_fine: torch.Tensor) -> None:
    """Set a flag unless all is fine."""
    flag.logical_or_(is_fine.all().logical_not())


def first_beyond(kept: torch.dtype, read: torch.dtype) -> float:
    """The least magnitude that becomes infinite on the way to a slot and back."""
    if kept == torch.float16:
        return 65520.0
    return 65408.0 if read == torch.float16 else (2 - 2.0**-8) * 2.0**127


def round_to_bfloat16(value: torch.Tensor) -> torch.Tensor:
    """Float32 numbers that bfloat16 holds: half to even.

    By bits, because a compiler may leave out a conversion there and back.
    """
    bits = value.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


FORMATS: dict[str, CacheFormat] = {
    found.name: found
    for found in (
        ExactFormat(),
        CastFormat("fp16", torch.float16, 2.0**-11, 2.0**-25),
        CastFormat("bf16", torch.bfloat16, 2.0**-8, 2.0**-134),
        ScaledFormat("int8", torch.int8, 127, TOKEN, 0.0, 1 / 252, 8e-3),
        ScaledFormat("int8-per-channel", torch.int8, 127, CHANNEL, 0.0, 1 / 252, 8e-3),
        ScaledFormat("fp8", torch.float8_e4m3fn, 448, TOKEN, 2.0**-3.9, 2.0**-18, 2.5e-2),
    )
}
