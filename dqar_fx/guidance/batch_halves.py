"""The two streams of guidance as halves of one batch: taken apart, and joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.conditioning_nodes import LATENT_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Tensors = Sequence[torch.Tensor]

ORDERS = ("conditional_first", "unconditional_first")


@dataclass(frozen=True)
class BatchHalves:
    """The inputs of a call, by stream.

    What has as many rows as the latent is split, into views; both streams get all the rest.

    Attributes:
        conditional: The flat inputs of the conditional stream.
        unconditional: Those of the unconditional one.
        rows: How many samples each half has.
        order: A name of `ORDERS`.
    """

    conditional: list[Any]
    unconditional: list[Any]
    rows: int
    order: str

    @classmethod
    def of(cls, leaves: Sequence[Any], named: Mapping[str, Any], order: str) -> BatchHalves:
        """Take the inputs of a batch apart, which has its halves in an order of `ORDERS`.

        Raises:
            DqarError: The batch has no two halves.
        """
        rows = count_rows(named, leaves)
        if rows % 2 or not rows:
            raise DqarError(
                f"guidance batched={order!r} means two halves of one batch, but the latent "
                f"has {rows} rows: expected an even number. Call with both streams, or "
                "transform without guidance; for streams with calls of their own, batched=None"
            )
        middle = rows // 2
        split = [isinstance(x, torch.Tensor) and x.shape[:1] == (rows,) for x in leaves]
        pairs = list(zip(leaves, split, strict=True))
        first = [leaf[:middle] if is_split else leaf for leaf, is_split in pairs]
        second = [leaf[middle:] if is_split else leaf for leaf, is_split in pairs]
        if order == "conditional_first":
            return cls(first, second, middle, order)
        return cls(second, first, middle, order)

    def join(self, conditional: Tensors, unconditional: Tensors) -> list[torch.Tensor]:
        """The outputs of the whole batch, from those of the streams.

        Raises:
            DqarError: An output does not have a row for each sample.
        """
        for i, value in enumerate(conditional):
            if value.shape[:1] != (self.rows,):
                raise DqarError(
                    f"output {i} of the denoiser has shape {list(value.shape)} for "
                    f"{self.rows} samples, but the halves of a batch are joined by rows: "
                    "expected a row for each sample. Call the streams apart, with "
                    "Guidance(batched=None)"
                )
        both = (conditional, unconditional)
        first, second = both if self.order == "conditional_first" else both[::-1]
        return [torch.cat(pair) for pair in zip(first, second, strict=True)]


def count_rows(named: Mapping[str, Any], leaves: Sequence[Any]) -> int:
    """The batch size: rows of the latent, which is known before anything is captured."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    given = (named.get(name) for name in LATENT_NAMES)
    found = [value for value in given if isinstance(value, torch.Tensor)]
    found += [value for value in tensors if value.is_floating_point()]
    return found[0].shape[0] if found and found[0].dim() else 0
