"""The words that passes and the rest of the package share: tensor spec, site, no match.

Nothing here touches a graph; `graphs.py` beside it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True)
class TensorSpec:
    """Shape, strides (in elements), dtype and device of a tensor that does not exist yet."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """The spec of a tensor, fake or real."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the storage that `allocate` makes."""
        extent = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.dtype.itemsize * (extent if 0 not in self.shape else 0)

    def allocate(self) -> torch.Tensor:
        """A new tensor of zeros."""
        return self.make_empty().zero_()

    def make_empty(self) -> torch.Tensor:
        """A new tensor of any values."""
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device=self.device
        )


@dataclass(frozen=True)
class Site:
    """One part of the graph that may be reused.

    Attributes:
        index: Position in execution order; the column of the branch table.
        path: Module path, such as ``transformer_blocks.3.attn1``. A module called twice
            gives two sites; the second path ends in ``@1``.
        kind: The name of an entry of `SITE_KINDS`, such as ``"self"`` or ``"block"``.
        variant: How the graph spells it: ``"fused"``, ``"matmul_softmax"``, the activation,
            ``"residual"``, or ``"whole"`` for a part that is no residual.
        kept: What is kept: one spec per output (joint attention has two), or per key and
            value.
        source: ``file:line`` of its operator.
    """

    index: int
    path: str
    kind: str
    variant: str
    kept: tuple[TensorSpec, ...]
    source: str

    def __str__(self) -> str:
        shapes = ", ".join(str(list(o.shape)) for o in self.kept)
        return f"{self.index:3d}  {self.path}  {self.kind}, {self.variant}, keeps {shapes}"


class NoMatch(Exception):
    """A candidate that is not a site: the reason, and the node it was found at.

    Attributes:
        reason: Why it is none.
        node: Where that was seen.
        kind: The kind of site that it would have been, where that is known.
    """

    def __init__(self, reason: str, node: fx.Node, kind: str = "") -> None:
        super().__init__(f"{reason} (at %{node.name})")
        self.reason = reason
        self.node = node
        self.kind = kind
