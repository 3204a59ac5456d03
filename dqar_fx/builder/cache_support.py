"""Whether a device has what a cache format needs: asked before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dqar_fx.errors import OptionError
from dqar_fx.passes import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dqar_fx.passes import CacheFormat

HAS_FP8 = (8, 9)
"""The first CUDA compute capability with e4m3 conversions; Triton refuses older ones."""


def refuse_format(cache: CacheFormat, kept: Iterable[TensorSpec]) -> None:
    """Raise for a format whose dtype or conversions a device does not have.

    Raises:
        OptionError: With the device and what it said.
    """
    for spec in set(kept):
        reason = why_not(cache, spec)
        if reason is not None:
            raise OptionError(
                f"cache={cache.name!r} cannot be used on {spec.device}: {reason}. Use "
                "cache='int8', which takes as few bytes, or 'fp16'"
            )


def why_not(cache: CacheFormat, spec: TensorSpec) -> str | None:
    """What a device says to one tiny round trip; None if it works."""
    value = torch.ones((2,) * len(spec.shape), dtype=spec.dtype, device=spec.device)
    buffers = cache.specs(TensorSpec.of(value))
    is_eight_bit_float = any(buffer.dtype == torch.float8_e4m3fn for buffer in buffers)
    if is_eight_bit_float and spec.device.type == "cuda":
        found = torch.cuda.get_device_capability(spec.device)
        if found < HAS_FP8:
            return f"compute capability {found} is below {HAS_FP8}, which brought e4m3"
    try:
        allocated = [buffer.allocate() for buffer in buffers]
        cache.write(value, allocated)
        cache.read(allocated, spec.dtype)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None
