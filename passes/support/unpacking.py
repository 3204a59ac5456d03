"""Nodes that unpack quantised parameters.

They are made of parameters alone, as constants are, but each is larger than what it is made
of: to keep it would undo the quantisation. So they run where they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import fx

from .editing import copy_meta
from .graphs import parameter_path, tensor_value

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

Key = TypeVar("Key")


def is_packed(node: fx.Node) -> bool:
    """Whether a node stands for a parameter of 8 bits an element, or of several in 8 bits."""
    value = tensor_value(node)
    if parameter_path(node) is None or value is None:
        return False
    return value.itemsize == 1 and value.dtype != torch.bool


def find_unpacking(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that are made of parameters alone, packed ones among them; in order."""
    constant, unpacking = set[fx.Node](), dict[fx.Node, None]()
    for node in nodes:
        sources = node.all_input_nodes
        if all(source in constant or parameter_path(source) for source in sources):
            constant.add(node)
            if any(source in unpacking or is_packed(source) for source in sources):
                unpacking[node] = None
    return list(unpacking)


def find_left(
    free: Collection[fx.Node], unpacking: Sequence[fx.Node]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Nodes that unpack for the step alone, and those that do for the step and for others.

    Args:
        free: What need not be in the step.
        unpacking: What unpacks, in order.
    """
    left, shared = set[fx.Node](), set[fx.Node]()
    for node in reversed(unpacking):
        in_step = [user not in free or user in left for user in node.users]
        if all(in_step):
            left.add(node)
        elif any(in_step):
            shared.add(node)
    return left, shared & set(free)


def unpack_where_read(
    nodes: Sequence[fx.Node],
    unpacking: Collection[fx.Node],
    key_of: Callable[[fx.Node], Key],
) -> dict[fx.Node, Key]:
    """A key for each node: of what unpacks, that of what reads it, one copy for each.

    Args:
        nodes: All of them, in order.
        unpacking: Those among them that unpack; all that reads them is among ``nodes``.
        key_of: The key of each of the others.
    """
    keys: dict[fx.Node, Key] = {}
    for node in reversed(nodes):
        if node not in unpacking:
            keys[node] = key_of(node)
            continue
        first, *others = dict.fromkeys(keys[user] for user in node.users)
        keys[node] = first
        for key in others:
            with node.graph.inserting_before(node):
                copy = node.graph.node_copy(node)
            copy.meta = copy_meta(node)
            keys[copy] = key
            for user in [user for user in node.users if keys[user] == key]:
                user.replace_input_with(node, copy)
    return dict(reversed(keys.items()))
