"""Put one batch size into a graph that `free_batch` has freed of it.

Legal because a size that an input tells is known once the batch is:

    %size = sym_size.int(%x, 0)                       ; %x is f32[8, 36, 60]
    %view : f32[8, 36, 3, 20] = view(%x, [%size, -1, 3, 20])
 -> %view : f32[8, 36, 3, 20] = view(%x, [8, -1, 3, 20])

A copy that makes its input contiguous goes where the input is contiguous at this batch size,
as it is not captured there. What remains is what a capture at this size must give: shapes and
strides of all values are computed anew.

Leaves alone: graphs that do not depend on the batch.

Source: constant propagation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from .support.graphs import tensor_value

if TYPE_CHECKING:
    from .support.batch_sizes import FreeLayout

aten = torch.ops.aten


def fix_batch(gm: fx.GraphModule, batch: int) -> int:
    """Fix the batch size of a freed graph; the sizes put in and the copies dropped."""
    propagate_batch(gm, batch)
    return put_sizes(gm.graph) + drop_copies(gm.graph)


def propagate_batch(gm: fx.GraphModule, batch: int) -> None:
    """Compute all values anew, on inputs of this batch size."""
    inputs = gm.graph.find_nodes(op="placeholder")
    mode: Any = next(
        (v.fake_mode for v in map(tensor_value, inputs) if v is not None),  # type: ignore[attr-defined]
        None,
    )
    if mode is None:
        return
    with mode:
        values = [value_at(node, batch) for node in inputs]
    FakeTensorProp(gm, mode).propagate_dont_convert_inputs(*values)


def value_at(node: fx.Node, batch: int) -> object:
    """The fake value of an input at a batch size."""
    layout: FreeLayout | None = node.meta.get("layout")
    value = tensor_value(node)
    if layout is None or value is None:
        return node.meta.get("val")
    return layout.allocate(value, batch)


def put_sizes(graph: fx.Graph) -> int:
    """Put numbers where nodes give sizes; the number of nodes."""
    calls = (node for node in graph.nodes if node.op == "call_function")
    sizes = [node for node in calls if type(node.meta.get("val")) is int]  # no truth values

    def put(node: fx.Node) -> Any:
        return node.meta["val"] if node in sizes else node

    for user in list(dict.fromkeys(user for node in sizes for user in node.users)):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), put)
    for node in reversed(sizes):
        graph.erase_node(node)
    return len(sizes)


def drop_copies(graph: fx.Graph) -> int:
    """Drop copies of what is contiguous; their number."""
    dropped = 0
    for node in graph.find_nodes(op="call_function", target=aten.contiguous.default):
        (source,) = node.all_input_nodes
        value = tensor_value(source)
        if value is not None and value.is_contiguous() and len(node.args) == 1:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            dropped += 1
    return dropped
