"""The fake values of nodes, after a rewrite has changed those that they read."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from dqar_fx.errors import DqarError

from .editing import insert_call
from .graphs import describe_value, source_line

if TYPE_CHECKING:
    from collections.abc import Mapping

aten = torch.ops.aten

VIEWS = {aten.view.default, aten._unsafe_view.default}
"""Operators that give another shape where strides allow it."""
STRIDE_READERS = {
    aten.as_strided.default,
    aten.as_strided_copy.default,
    aten.as_strided_scatter.default,
}
"""Operators whose values depend on the strides of what they read."""


def refresh_values(graph: fx.Graph, changed: Mapping[fx.Node, object]) -> None:
    """Compute the values behind some nodes anew, as far as their layouts become others.

    A view that other strides do not allow becomes a reshape. What else needs the layout that
    it was captured with reads a copy of that layout.

    Args:
        graph: The graph.
        changed: Nodes that have another value now, and the former ones; None for unknown.

    Raises:
        DqarError: An operator needs a layout that no copy has.
    """
    former = dict(changed)
    for node in list(graph.nodes):
        is_item = node.target is operator.getitem
        if former.keys().isdisjoint(node.all_input_nodes) or not (
            is_item or isinstance(node.target, torch._ops.OpOverload)
        ):
            continue
        if node.target in STRIDE_READERS:
            restore_layouts(node, former)
            continue
        value = derive_value(node, former)
        if layouts_of(value) != layouts_of(node.meta["val"]):
            former[node] = node.meta["val"]
        node.meta["val"] = value


def derive_value(node: fx.Node, former: Mapping[fx.Node, object]) -> object:
    """The value of a node, which is written otherwise if it cannot do with other layouts."""
    try:
        return evaluate(node)
    except (RuntimeError, ValueError):  # what fake kernels raise for strides
        if node.target in VIEWS:
            node.target = aten.reshape.default
        else:
            restore_layouts(node, former)
    return evaluate(node)


def evaluate(node: fx.Node) -> Any:
    """What a node's operator makes of fake values."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    assert callable(node.target)
    return node.target(*args, **kwargs)


def restore_layouts(node: fx.Node, former: Mapping[fx.Node, object]) -> None:
    """Let a node read copies that have the layouts of former values."""
    for source in [each for each in node.all_input_nodes if each in former]:
        order = order_of(former[source])
        needs_all = node.target in STRIDE_READERS
        if needs_all and (order is None or not shows_all(former[source])):
            raise DqarError(
                f"%{node.name} ({source_line(node)}, {node.target}) reads %{source.name} by "
                "strides of a view that shows a part of its memory, or some of it again. No "
                "copy has such strides. Use x.clone() before it in the model"
            )
        dims = order or list(range(source.meta["val"].dim()))
        with node.graph.inserting_before(node):
            turned = insert_call(source, aten.permute.default, source, dims)
            copied = insert_call(source, aten.contiguous.default, turned)
            back = [dims.index(i) for i in range(len(dims))]
            turned = insert_call(source, aten.permute.default, copied, back)
        node.replace_input_with(source, turned)


def order_of(value: object) -> list[int] | None:
    """The order of dimensions in which a tensor is contiguous from the start of its memory."""
    if not isinstance(value, torch.Tensor) or value.storage_offset():
        return None
    order = sorted(range(value.dim()), key=lambda i: (-value.stride()[i], -value.shape[i]))
    return order if value.permute(order).is_contiguous() else None


def shows_all(value: object) -> bool:
    """Whether a tensor shows all of its memory, so that a copy of it has as much."""
    assert isinstance(value, torch.Tensor)
    return value.untyped_storage().nbytes() == value.numel() * value.itemsize


def layouts_of(value: object) -> list[str]:
    """The layouts of all tensors in a value."""
    return [describe_value(leaf) for leaf in pytree.tree_leaves(value)]
