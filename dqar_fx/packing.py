"""Weights packed for the CPU's kernels, once for all steps, rows and signatures.

Packed weights are copies. The parameters stay the truth: at the beginning of each trajectory
they are read once, and what was written since, by whatever way, is packed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import torch

from dqar_fx.passes.prepack_linears import can_pack, pack_weight

from .errors import FormatError
from .weights import storage_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .program import Program

    View = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass
class Packed:
    """A weight and its packed copy.

    Attributes:
        weight: The parameter ``[out, in]``.
        copy: The copy: always this object, whose memory is replaced.
        checksum: Of the weight as it was packed.
    """

    weight: torch.Tensor
    copy: torch.Tensor
    checksum: tuple[int, float]

    @classmethod
    def of(cls, weight: torch.Tensor) -> Packed:
        """Pack a weight."""
        return cls(weight, pack_weight(weight), checksum_of(weight))

    def refresh(self) -> bool:
        """Pack the weight again if it was written to; whether it was."""
        found = checksum_of(self.weight)
        if found == self.checksum:
            return False
        # calls that are bound hold this very tensor
        self.copy.data, self.checksum = pack_weight(self.weight), found
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, padding of its blocks included."""
        return count_bytes(self.copy)


class Packing:
    """The packed weights of a denoiser, each view of a storage once."""

    def __init__(self) -> None:
        self._known: dict[View, Packed] = {}

    def __len__(self) -> int:
        return len(self._known)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The packed copy of a weight ``[out, in]``, float32 on the CPU."""
        key = view_of(weight)
        if key not in self._known:
            self._known[key] = Packed.of(weight)
        return self._known[key].copy

    def refresh(self) -> int:
        """Pack again what was written to; the number of weights."""
        return sum(packed.refresh() for packed in self._known.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all copies so far."""
        return sum(packed.nbytes for packed in self._known.values())


def view_of(tensor: torch.Tensor) -> View:
    """What tensors that show the same elements in the same order share."""
    storage, offset = storage_key(tensor), int(tensor.storage_offset())
    return storage, offset, tuple(tensor.shape), tensor.stride()


def checksum_of(weight: torch.Tensor) -> tuple[int, float]:
    """What tells a weight's values from others, however they were written.

    The hash alone is 0 for every weight whose elements are all the same.
    """
    given = weight.detach()
    return int(torch.hash_tensor(given).item()), float(given.sum().item())


def count_bytes(packed: torch.Tensor) -> int:
    """Bytes of a packed weight."""
    return int(torch.ops.mkldnn._nbytes(packed))


# ---- before anything runs ----------------------------------------------------------------


def count_packed(programs: Iterable[Program]) -> int:
    """Bytes of the packed copies of programs over one model, once all have run."""
    asked = [program for program in programs if program.lowering.options.prepack]
    weights = {view_of(w): w for w in chain.from_iterable(p.weights_to_pack() for p in asked)}
    return sum(packed_bytes(tuple(weight.shape)) for weight in weights.values())


def refuse_nothing_packed(program: Program) -> None:
    """Raise where packing was asked for, and would do nothing.

    Raises:
        FormatError: No linear of the step can take packed weights.
    """
    if not can_pack():
        raise FormatError(
            "compile={'prepack': True}: this build of PyTorch has no oneDNN, which packs the "
            "weights. Leave 'prepack' out"
        )
    if program.weights_to_pack():
        return
    kept = (spec for site in program.explanation.sites for spec in site.kept)
    found = sorted({f"{spec.dtype} on {spec.device}" for spec in kept})
    raise FormatError(
        "compile={'prepack': True}: no linear of the step takes packed weights. Expected "
        "linears of float32 on a CPU, with 17 rows (samples times tokens) or more; found "
        f"sites of {', '.join(found)}. Leave 'prepack' out"
    )


@cache
def packed_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a packed weight of a shape: blocks are filled up."""
    return count_bytes(pack_weight(torch.zeros(shape)))
