"""Weights packed for the CPU's kernels, once for all steps, rows and signatures.

Packed weights are copies. The parameters stay the truth: at the beginning of each trajectory
they are read, and what was written in place since, by whatever way, is packed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from dqar_fx.errors import OptionError
from dqar_fx.passes.merge_equal_parameters import memory_of
from dqar_fx.passes.prepack_linears import can_pack, pack_weight

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from .program import Program

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

    def refresh(self) -> None:
        """Pack again what was written to."""
        for packed in self._known.values():
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


# ---- before anything runs ----------------------------------------------------------------


def count_packed(programs: Iterable[Program]) -> int:
    """Bytes of the packed copies of programs over one model, once all have run."""
    asked = [program for program in programs if program.lowering.options.prepack]
    found: dict[View, torch.Tensor] = {}
    for program in asked:
        found |= weights_to_pack(program, program.table.rows)
    return sum(packed_bytes(tuple(weight.shape)) for weight in found.values())


def weights_to_pack(
    program: Program, rows: Iterable[Sequence[int]]
) -> dict[View, torch.Tensor]:
    """The parameters that linears of a program's step take packed at some rows."""
    found: dict[View, torch.Tensor] = {}

    def note(weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        found.update(zip(views_of(weights), weights, strict=True))
        return weights

    for row in rows:
        program.bind_unlowered(row, note)
    return found


def refuse_nothing_packed(program: Program) -> None:
    """Raise where packing was asked for, and would do nothing.

    Raises:
        OptionError: No linear of the step can take packed weights.
    """
    if not can_pack():
        raise OptionError(
            "compile={'prepack': True}: this build of PyTorch has no oneDNN, which packs the "
            "weights. Leave 'prepack' out"
        )
    if weights_to_pack(program, [program.table.row(0)]):  # it computes everything
        return
    kept = (spec for site in program.explanation.sites for spec in site.kept)
    found = sorted(
        f"{spec.dtype} on {spec.device} with {torch.Size(spec.shape[:-1]).numel()} rows"
        for spec in set(kept)
    )
    raise OptionError(
        "compile={'prepack': True}: no linear of the step takes packed weights. Expected "
        "linears of float32 on a CPU, with 17 rows (samples times tokens) or more; found "
        f"sites that give {', '.join(found)}. Leave 'prepack' out"
    )


@cache
def packed_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a packed weight of a shape: blocks are filled up."""
    return count_bytes(pack_weight(torch.zeros(shape, dtype=torch.float32, device="cpu")))
