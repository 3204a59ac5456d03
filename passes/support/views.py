"""Which nodes show memory that another node computed."""

from __future__ import annotations

import operator

import torch
from torch import fx


def aliases_input(node: fx.Node) -> bool:
    """Whether an operator's first result is memory of an input: a view, or written to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return bool(returns) and returns[0].alias_info is not None


def is_pure_view(node: fx.Node) -> bool:
    """Whether an operator's first result shows memory of an input and nothing is written."""
    return aliases_input(node) and not node.target._schema.is_mutable  # type: ignore[union-attr]  # an operator, see above


def find_shown(node: fx.Node) -> fx.Node:
    """The node whose memory this one shows, through any number of views and items."""
    while node.op == "call_function":
        if node.target is not operator.getitem and not aliases_input(node):
            break
        node = node.all_input_nodes[0]
    return node
