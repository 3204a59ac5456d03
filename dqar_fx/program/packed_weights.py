"""Weights packed for the CPU's kernels, once for all steps, rows and signatures.

Packed weights are copies. The parameters stay the truth: at the beginning of each trajectory
they are read, and what was written in place since, by whatever way, is packed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from dqar_fx.passes.prepack_linears import pack_weight
from dqar_fx.passes.support.equal_tensors import memory_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    View = tuple[Hashable, int]


@dataclass
class PackedWeight:
    """A weight and its packed copy.

    Attributes:
        weight: The parameter ``[out, in]``.
        copy: The copy: always this object, whose memory is replaced.
        sums: Of the weight as it was packed, as `sums_of` gives them.
    """

    weight: torch.Tensor
    copy: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> PackedWeight:
        """Pack a weight."""
        return cls(weight, pack_weight(weight), sums_of(weight))

    def refresh(self) -> None:
        """Pack the weight again if it was written to."""
        found = sums_of(self.weight)
        if not torch.equal(found, self.sums):
            # calls that are bound hold this very tensor
            self.copy.data, self.sums = pack_weight(self.weight), found

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, padding of its blocks included."""
        return count_bytes(self.copy)


def sums_of(weight: torch.Tensor) -> torch.Tensor:
    """What tells a weight ``[out, in]`` from what it was, however it was written: ``[out]``.

    Each row times one vector of random signs and magnitudes from 1 to 2, so that the order
    of elements counts. What changes no sum is lost in its rounding, as it is in a product's.
    """
    return weight.detach() @ draw_factors(weight.shape[1])


@cache
def draw_factors(num_columns: int) -> torch.Tensor:
    """The vector of `sums_of`, the same for all weights of a width: float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(num_columns, dtype=torch.float32, device="cpu")
    signs = torch.empty_like(drawn).bernoulli_(0.5, generator=generator)
    return drawn.uniform_(1, 2, generator=generator) * (2 * signs - 1)


class PackedWeights:
    """The packed weights of a denoiser, each view of a storage once."""

    def __init__(self) -> None:
        self._known: dict[View, PackedWeight] = {}

    def __len__(self) -> int:
        return len(self._known)

    def pack(self, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The packed copies of the weights ``[out, in]`` of one call, float32 on the CPU."""
        found = dict(zip(views_of(weights), weights, strict=True))
        for view, weight in found.items():
            if view not in self._known:
                self._known[view] = PackedWeight.of(weight)
        return [self._known[view].copy for view in found]

    def clear(self) -> None:
        """Forget all copies, and the weights that they are of."""
        self._known.clear()

    def refresh(self) -> None:
        """Pack again what was written to."""
        for packed in list(self._known.values()):
            packed.refresh()

    @property
    def nbytes(self) -> int:
        """Bytes of all copies so far."""
        return sum(packed.nbytes for packed in self._known.values())


def views_of(weights: Sequence[torch.Tensor]) -> list[View]:
    """What tensors share that show the same elements, each weight of a call by itself.

    A compiler takes it for a promise if two arguments are one object: were tied weights of one
    block so, it would be compiled by itself.
    """
    shown = [memory_of(weight) for weight in weights]
    return [(view, shown[:place].count(view)) for place, view in enumerate(shown)]


def count_bytes(packed: torch.Tensor) -> int:
    """Bytes of a packed weight."""
    return int(torch.ops.mkldnn._nbytes(packed))
