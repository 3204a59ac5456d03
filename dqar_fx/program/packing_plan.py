"""Which weights the programs of a denoiser will pack, known before anything runs."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from dqar_fx.errors import OptionError
from dqar_fx.passes.prepack_linears import can_pack, pack_weight

from .packed_weights import count_bytes, views_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .packed_weights import View
    from .program import Program


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
        program.binder.bind_unlowered(row, note)
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
