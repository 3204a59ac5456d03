"""The fake values of nodes, after a rewrite has changed those that they read."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .graphs import describe_value

if TYPE_CHECKING:
    from collections.abc import Iterable


def refresh_values(graph: fx.Graph, changed: Iterable[fx.Node]) -> None:
    """Compute the values behind some nodes anew, as far as their layouts become others."""
    stale = set(changed)
    for node in graph.nodes:
        is_item = node.target is operator.getitem
        if stale.isdisjoint(node.all_input_nodes) or not (
            is_item or isinstance(node.target, torch._ops.OpOverload)
        ):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        value = node.target(*args, **kwargs)
        if layouts_of(value) != layouts_of(node.meta["val"]):
            stale.add(node)
        node.meta["val"] = value


def layouts_of(value: object) -> list[str]:
    """The layouts of all tensors in a value."""
    return [describe_value(leaf) for leaf in pytree.tree_leaves(value)]
