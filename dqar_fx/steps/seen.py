"""Whether a tensor of a call is one of an earlier call: the same object, or the same values.

Writes in place are counted by torch except in inference mode; there a digest of the values is
kept instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dqar_fx.passes.support.equal_tensors import version_of

GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(slots=True)
class SeenTensor:
    """A tensor as it was at some call.

    Attributes:
        tensor: The tensor, kept alive so that its identity stays its own.
        version: How often it had been written to; None where that is not counted.
        digest: What its values were, where writes are not counted; else None.
    """

    tensor: torch.Tensor
    version: int | None
    digest: torch.Tensor | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> SeenTensor:
        """Remember a tensor."""
        version = version_of(tensor)
        return cls(tensor, version, digest_of(tensor) if version is None else None)

    def is_same(self, tensor: torch.Tensor) -> bool:
        """Whether this is that tensor, or the same view of it, and unwritten since."""
        if self.version is None or version_of(tensor) != self.version:
            return False
        return self.tensor is tensor or shows_same_memory(self.tensor, tensor)

    def is_equal(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor has the values that the remembered one had.

        False where that one was written to since: what it had is not known any more.
        """
        own = self.tensor
        if (own.shape, own.dtype, own.device) != (tensor.shape, tensor.dtype, tensor.device):
            return False
        if self.digest is not None:
            return torch.equal(
                self.digest.view(torch.int64), digest_of(tensor).view(torch.int64)
            )
        if version_of(own) != self.version:
            return False
        return own is tensor or torch.equal(own, tensor)

    def agrees(self, tensor: torch.Tensor) -> bool:
        """Whether it is the same tensor, or has its values."""
        return self.is_same(tensor) or self.is_equal(tensor)


def digest_of(tensor: torch.Tensor) -> torch.Tensor:
    """What tells a tensor's values from others, float64 ``[2]``.

    Any change of a single element changes the exclusive-or of all bits. A change that leaves
    that as it was, such as another order or the sign of an even number of elements, changes
    the product with weights that are all different: the fractional parts of multiples of the
    golden ratio.
    """
    flat = tensor.detach()
    if flat.device.type == "mps":
        flat = flat.cpu()  # it has no float64
    if flat.is_complex():
        flat = torch.view_as_real(flat)
    flat = flat.reshape(-1).double()
    weights = torch.arange(len(flat), device=flat.device, dtype=torch.float64)
    weights = weights.mul_(GOLDEN_RATIO).frac_().add_(1)
    return torch.stack([torch.hash_tensor(flat).view(torch.float64), torch.dot(flat, weights)])


def shows_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same view of one storage."""
    if a.shape != b.shape or a.stride() != b.stride() or a.dtype != b.dtype:
        return False
    same_place = a.storage_offset() == b.storage_offset()
    return same_place and a.untyped_storage()._cdata == b.untyped_storage()._cdata
