"""Let the conditioning read one of several equal parameters.

Legal because the tensors are equal bit for bit, strides included:

    %a = get_attr[transformer_blocks.0.norm1.emb.linear.weight]
    %b = get_attr[transformer_blocks.1.norm1.emb.linear.weight]  ->  users of %b read %a

The expressions that this makes equal are computed once by `merge_duplicates`. In DiT as
diffusers converts it, every block holds a copy of one timestep and label embedder: 28 copies
are evaluated, and held, where one would do.

Leaves alone: what a step reads. There equal tensors are chance, such as biases that are zero,
and blocks that share one would no longer be alike. So are tensors without values (meta).

Source: common subexpression elimination, with parameters compared by value.
"""

from __future__ import annotations

from collections import defaultdict
from functools import reduce
from typing import TYPE_CHECKING

import torch

from .hoist_conditioning import find_conditioning
from .support.graphs import parameter_path

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import fx

NUM_SAMPLED = 16
"""Values of each tensor that are compared before all of them are."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Dtypes that show the bits of an element of so many bytes."""


def merge_equal_parameters(gm: fx.GraphModule) -> int:
    """Let users of a parameter read the first one that equals it; the number merged."""
    hoisted = frozenset(find_conditioning(gm))
    nodes = [
        node
        for node in gm.graph.nodes
        if node.op == "get_attr" and parameter_path(node) and hoisted.issuperset(node.users)
    ]
    tensors = [find_tensor(gm, str(node.target)) for node in nodes]
    rewrites = 0
    for first, *others in group_equal(tensors):
        for other in others:
            nodes[other].replace_all_uses_with(nodes[first])
            gm.graph.erase_node(nodes[other])
            rewrites += 1
    return rewrites


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
        by_layout[layout_of(tensors[same[0]])].append(same)
    groups = [group for alike in by_layout.values() for group in join_equal(alike, tensors)]
    return sorted(sorted(group) for group in groups if len(group) > 1)


def join_equal(
    groups: Sequence[list[int]], tensors: Sequence[torch.Tensor]
) -> list[list[int]]:
    """Join groups, each of tensors over one memory, whose bits are equal; of one layout."""
    first = tensors[groups[0][0]]
    if len(groups) < 2 or not is_comparable(first):
        return list(groups)
    samples = torch.stack([sample(bits_of(tensors[group[0]])) for group in groups])
    joined: dict[Hashable, list[list[int]]] = defaultdict(list)
    for group, values in zip(groups, samples.tolist(), strict=True):
        for known in joined[tuple(values)]:
            if torch.equal(bits_of(tensors[known[0]]), bits_of(tensors[group[0]])):
                known.extend(group)
                break
        else:
            joined[tuple(values)].append(list(group))
    return [group for alike in joined.values() for group in alike]


def memory_of(tensor: torch.Tensor) -> Hashable:
    """What is equal for two tensors exactly if they are the same view of one storage."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), *layout_of(tensor))


def layout_of(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    """Shape, strides, dtype, device and class."""
    kind = torch.Tensor if isinstance(tensor, torch.nn.Parameter) else type(tensor)
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, kind)


def is_comparable(tensor: torch.Tensor) -> bool:
    """Whether its bits can be looked at."""
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    has_values = tensor.device.type != "meta" and tensor.numel() > 0
    return is_plain and has_values and tensor.itemsize in INTEGERS


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: -0.0 is not 0.0, and NaN is NaN."""
    return tensor.detach().view(INTEGERS[tensor.itemsize])


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """``NUM_SAMPLED`` of its values, evenly spaced."""
    places = torch.arange(NUM_SAMPLED) * (tensor.numel() - 1) // (NUM_SAMPLED - 1)
    indices = torch.unravel_index(places, tensor.shape) if tensor.dim() else ()
    found = tensor[tuple(index.to(tensor.device) for index in indices)]
    return found.expand(NUM_SAMPLED)
