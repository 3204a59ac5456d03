"""Storage formats of the slots: how a kept output is written down and read again.

| name | stored as        | error of one round trip, relative to the value                 |
|------|------------------|----------------------------------------------------------------|
| same | the site's dtype | none                                                           |
| fp16 | float16          | at most 2**-11, or 2**-25 absolute below 2**-14; range 65504   |
| bf16 | bfloat16         | at most 2**-8 above 2**-126; range 3.39e38                     |

A format is what `encode` and `decode` say, in plain tensor operations: they are traced into
the graph, so that a compiler fuses them with what produces and what consumes the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .vocabulary import TensorSpec


@dataclass(frozen=True)
class CacheFormat:
    """Keeps a tensor in one buffer of another floating-point dtype, or of its own.

    Attributes:
        name: As given to ``transform(cache=...)``.
        dtype: Storage dtype; None for the site's own.
        relative_error: Bound of one round trip for values in the normal range.
    """

    name: str
    dtype: torch.dtype | None
    relative_error: float

    def specs(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """The buffers that keep one output."""
        return (replace(output, dtype=self.dtype or output.dtype),)

    def encode(self, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What goes into the buffers."""
        return (value if self.dtype is None else value.to(self.dtype),)

    def decode(self, kept: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The value again, in the site's dtype."""
        return kept[0] if self.dtype is None else kept[0].to(dtype)


FORMATS = {
    found.name: found
    for found in (
        CacheFormat("same", None, 0.0),
        CacheFormat("fp16", torch.float16, 2.0**-11),
        CacheFormat("bf16", torch.bfloat16, 2.0**-8),
    )
}
