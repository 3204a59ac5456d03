"""What reads a model's tensors, seen from below: every operator of torch is looked at."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Reads(TorchDispatchMode):
    """Counts the products and look-ups that read each storage.

    Attributes:
        counts: By address of the storage.
    """

    READING = ("addmm", "mm", "bmm", "linear", "embedding", "convolution")

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.READING:
            leaves = tree_leaves((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            self.counts.update({t.untyped_storage().data_ptr() for t in tensors})
        return func(*args, **(kwargs or {}))

    def of(self, model):
        """Reads of each two-dimensional parameter, by name."""
        return {
            name: self.counts[p.untyped_storage().data_ptr()]
            for name, p in model.named_parameters()
            if p.dim() == 2
        }
