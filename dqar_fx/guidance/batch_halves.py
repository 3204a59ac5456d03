"""The two streams of guidance as halves of one batch: taken apart, and joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.conditioning_nodes import LATENT_NAMES, TIMESTEP_NAMES
from dqar_fx.steps.seen import SeenTensor

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
        latent: What is denoised, both halves of it.
        prompts: What is split beside it, but for the timestep.
    """

    conditional: list[Any]
    unconditional: list[Any]
    rows: int
    order: str
    latent: torch.Tensor
    prompts: list[torch.Tensor]

    @classmethod
    def of(
        cls, leaves: Sequence[Any], named: Mapping[str, Any], order: str
    ) -> BatchHalves | None:
        """Take the inputs of a batch apart, which has its halves in an order of `ORDERS`.

        None where the latent has an odd number of rows.
        """
        latent = find_latent(named, leaves)
        rows = 0 if latent is None or not latent.dim() else latent.shape[0]
        if latent is None or rows % 2 or not rows:
            return None
        middle = rows // 2
        split = [isinstance(x, torch.Tensor) and x.shape[:1] == (rows,) for x in leaves]
        pairs = list(zip(leaves, split, strict=True))
        first = [leaf[:middle] if is_split else leaf for leaf, is_split in pairs]
        second = [leaf[middle:] if is_split else leaf for leaf, is_split in pairs]
        timestep = next((named[name] for name in TIMESTEP_NAMES if name in named), None)
        others = [leaf for leaf, is_split in pairs if is_split and leaf is not latent]
        prompts = [leaf for leaf in others if leaf is not timestep]
        if order == "conditional_first":
            return cls(first, second, middle, order, latent, prompts)
        return cls(second, first, middle, order, latent, prompts)

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


def find_latent(named: Mapping[str, Any], leaves: Sequence[Any]) -> torch.Tensor | None:
    """The latent, which is known before anything is captured."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    given = (named.get(name) for name in LATENT_NAMES)
    found = [value for value in given if isinstance(value, torch.Tensor)]
    found += [value for value in tensors if value.is_floating_point()]
    return found[0] if found else None


class HalvesCheck:
    """Looks whether the halves of a batch are those of guidance: both denoise one latent.

    Values are read when a run begins, and for each new prompt: whoever turns guidance on or
    off in mid-run gives others.
    """

    def __init__(self) -> None:
        self._seen: list[SeenTensor] = []
        self._rows = 0
        self._found = False

    def look(self, halves: BatchHalves, *, again: bool = False) -> bool:
        """Whether both halves have the same latents.

        Args:
            halves: The halves.
            again: Whether to read their values even if they are known for the prompts.
        """
        is_known = self._rows == halves.rows and len(self._seen) == len(halves.prompts)
        pairs = zip(self._seen, halves.prompts, strict=False)
        if again or not (is_known and all(seen.is_same(new) for seen, new in pairs)):
            first, second = halves.latent.chunk(2)
            self._found = torch.equal(first, second)
            self._seen, self._rows = list(map(SeenTensor.of, halves.prompts)), halves.rows
        return self._found
