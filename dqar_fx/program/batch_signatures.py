"""Input signatures that differ in the batch size alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.capture.inputs import casts_of
from dqar_fx.passes import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils import _pytree as pytree

    from dqar_fx.plan.plan import Plan

    from .program import Program


@dataclass(frozen=True)
class BatchSignature:
    """A signature and all others that have more or fewer samples.

    What has as many rows as the latent has a row for each sample.

    Attributes:
        batch: The batch size of the first signature.
        latent: Position of the latent among the inputs.
        inputs: The first signature's tensors, or other values.
        context: Structure of the inputs, autocast, and how many steps are kept.
        plans: By batch size; at least of the first signature.
    """

    batch: int
    latent: int
    inputs: tuple[object, ...]
    context: tuple[object, ...]
    plans: dict[int, Plan] = field(default_factory=dict)

    @classmethod
    def of(
        cls, program: Program, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> BatchSignature:
        """The batch signature of a program and the flat inputs that it was built for."""
        latent = program.roles.latent
        batch = count_samples(leaves[latent])
        inputs = tuple(map(describe_input, leaves))
        context = context_of(program, leaves, spec)
        return cls(batch, latent, inputs, context, {batch: program.plan})

    def has(self, program: Program, leaves: Sequence[Any], spec: pytree.TreeSpec) -> bool:
        """Whether a program and its flat inputs have this batch signature."""
        if context_of(program, leaves, spec) != self.context:
            return False
        batch = self.batch_of(leaves)
        pairs = zip(self.inputs, map(describe_input, leaves), strict=True)
        return all(self._is_alike(known, given, batch) for known, given in pairs)

    def _is_alike(self, known: object, given: object, batch: int) -> bool:
        """Whether an input is the known one for another batch size."""
        if not isinstance(known, TensorSpec) or not isinstance(given, TensorSpec):
            return known == given
        if (known.dtype, known.device) != (given.dtype, given.device):
            return False
        has_samples = known.shape[:1] == (self.batch,)
        expected = (batch, *known.shape[1:]) if has_samples else known.shape
        if given.shape != expected:
            return False
        layout = zip(known.stride, given.stride, known.shape, given.shape, strict=True)
        return all(a == b or 1 in sizes for a, b, *sizes in layout)

    def batch_of(self, leaves: Sequence[Any]) -> int:
        """The batch size of flat inputs."""
        return count_samples(leaves[self.latent])

    def double(self, leaves: Sequence[Any]) -> list[Any]:
        """The same flat inputs with twice the samples."""
        return [
            double_rows(leaf)
            if isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (self.batch,)
            else leaf
            for leaf in leaves
        ]


def context_of(
    program: Program, leaves: Sequence[Any], spec: pytree.TreeSpec
) -> tuple[object, ...]:
    """What tells two programs apart beside their tensors."""
    return spec, casts_of(leaves), program.history


def count_samples(value: torch.Tensor) -> int:
    """Rows of a tensor; none of what has no dimension."""
    return value.shape[0] if value.dim() else 0


def describe_input(leaf: object) -> object:
    """Describe an input without its values."""
    return TensorSpec.of(leaf) if isinstance(leaf, torch.Tensor) else (type(leaf), repr(leaf))


def double_rows(value: torch.Tensor) -> torch.Tensor:
    """A tensor with its rows twice; rows that share memory go on sharing it."""
    if value.stride(0) == 0:
        return value[:1].expand(2 * len(value), *value.shape[1:])
    return torch.cat((value, value))
