"""Which tensors are equal bit for bit, strides included."""

from __future__ import annotations

from collections import defaultdict
from functools import reduce
from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .inner_tensors import as_plain

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

NUM_SAMPLED = 16
"""Values of each tensor that are compared before all of them are."""
WORD = 8
"""Bytes of an integer of 64 bits."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Dtypes that show the bits of an element of so many bytes."""


def find_tensor(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The tensor at a path."""
    tensor: object = reduce(getattr, path.split("."), module)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def group_equal(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Positions of tensors that are equal bit for bit, in groups of two and more."""
    by_memory: dict[Hashable, list[int]] = defaultdict(list)
    by_layout: dict[Hashable, list[list[int]]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        by_memory[memory_of(tensor)].append(i)
    for same in by_memory.values():
        by_layout[tensor_layout(tensors[same[0]])].append(same)
    groups = [group for alike in by_layout.values() for group in join_equal(alike, tensors)]
    return sorted(sorted(group) for group in groups if len(group) > 1)


def join_equal(
    groups: Sequence[list[int]], tensors: Sequence[torch.Tensor]
) -> list[list[int]]:
    """Join groups, each of tensors over one memory, whose bits are equal; of one layout."""
    first = tensors[groups[0][0]]
    if len(groups) < 2 or not is_comparable(first):
        return list(groups)
    places = spread_evenly(first.shape, first.device)
    sampled = [integer_view(tensors[group[0]])[places].expand(NUM_SAMPLED) for group in groups]
    samples = torch.stack(sampled)
    joined: dict[Hashable, list[list[int]]] = defaultdict(list)
    for group, values in zip(groups, samples.tolist(), strict=True):
        for known in joined[tuple(values)]:
            if torch.equal(integer_view(tensors[known[0]]), integer_view(tensors[group[0]])):
                known.extend(group)
                break
        else:
            joined[tuple(values)].append(list(group))
    return [group for alike in joined.values() for group in alike]


def memory_of(tensor: torch.Tensor) -> Hashable:
    """What is equal for two tensors exactly if they are the same view of one storage."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), *tensor_layout(tensor))


def version_of(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written in place; None where that is not recorded."""
    return None if tensor.is_inference() else tensor._version


def tensor_layout(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    """Shape, strides, dtype, device and class."""
    kind = torch.Tensor if isinstance(tensor, torch.nn.Parameter) else type(tensor)
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, kind)


def is_comparable(tensor: torch.Tensor) -> bool:
    """Whether its bits can be looked at."""
    has_memory = not (is_traceable_wrapper_subclass(tensor) or isinstance(tensor, FakeTensor))
    has_values = tensor.device.type != "meta" and tensor.numel() > 0
    return has_memory and has_values and tensor.itemsize in INTEGERS


def integer_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: -0.0 is not 0.0, and NaN is NaN."""
    return as_plain(tensor).view(INTEGERS[tensor.itemsize])


def sum_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A number that tells a tensor from what it was, int64: of sums of its bits.

    Its memory is laid out as a square of numbers of eight bytes each, which are summed along
    rows and columns, so that nothing is converted, and the order of elements counts. Its bits
    must be comparable.
    """
    whole = as_plain(tensor).contiguous().view(-1).view(torch.uint8)
    if whole.storage_offset() % WORD:
        whole = whole.clone()
    length = len(whole) // WORD * WORD
    words = whole[:length].view(torch.int64)
    side = isqrt(len(words))
    square, rest = words[: side**2].view(side, side), words[side**2 :]
    sums = torch.cat([square.sum(0), square.sum(1), rest, whole[length:].long()])
    odd = torch.arange(1, 2 * len(sums), 2, device=sums.device)  # so that none is lost
    return (sums * odd).sum()


def spread_evenly(shape: torch.Size, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Indices of `NUM_SAMPLED` values of tensors of a shape, evenly spaced."""
    places = torch.arange(NUM_SAMPLED) * (shape.numel() - 1) // (NUM_SAMPLED - 1)
    indices = torch.unravel_index(places, shape) if shape else ()
    return tuple(index.to(device) for index in indices)
