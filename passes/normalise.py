"""Drop what does nothing at inference.

Legal because each dropped node returns its input unchanged, value for value and bit for
bit, for the shapes, dtypes and devices that the graph was captured with:

    %to      : f32[2, 36, 60] = aten.to.dtype(%add, torch.float32)     ; %add is float32
    %dropout : f32[2, 36, 60] = aten.dropout.default(%linear, 0.0, False)
    %div     : f32[2, 36, 60] = aten.div.Tensor(%dropout, 1.0)
    %slice   : f32[2, 36, 60] = aten.slice.Tensor(%div, 1, 0, 9223372036854775807)
 -> (users read %add and %linear, both f32[2, 36, 60])

A cast that reads another tensor for nothing but its dtype is spelled without it, so that it
does not seem to depend on it:

    %cast : bf16[2, 60] = aten.type_as.default(%embedding, %x)         ; %x is bf16[2, 36, 60]
 -> %cast : bf16[2, 60] = aten.to.dtype(%embedding, torch.bfloat16)

Input checks (``_guards_fn``, ``_assert_*``) go too: the denoiser captures anew for other
inputs, so they cannot fail. So does dead code.

Leaves alone: ``add 0``, which turns -0.0 into 0.0, and copies.

Source: torch.export documentation (non-strict export inserts the checks).
"""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import fx

from .support.graphs import shape_of, tensor_value
from .support.sizes import spell_sizes

aten = torch.ops.aten

CHECKS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default}
ALIASES = {aten.alias.default, aten.detach.default}
CONVERSIONS = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten.type_as.default,
    aten.contiguous.default,
}
LIKE_ANOTHER = {aten.to.other, aten.type_as.default}
SCALINGS = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}
MAYBE_IDENTITY = {
    *ALIASES,
    *CONVERSIONS,
    *SCALINGS,
    aten.dropout.default,
    aten.slice.Tensor,
}
"""Operators that may return their first argument unchanged."""


def normalise(gm: fx.GraphModule) -> int:
    """Remove input checks, nodes that return their input, dead nodes; the number of edits."""
    before, respelled = len(gm.graph.nodes), 0
    for node in list(gm.graph.nodes):
        is_guard = node.op == "call_module" and node.target == "_guards_fn"
        if node.target in CHECKS or is_guard:
            gm.graph.erase_node(node)
        elif is_identity(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.target in LIKE_ANOTHER and is_on_one_device(node):
            node.target, node.args = aten.to.dtype, (node.args[0], node.meta["val"].dtype)
            respelled += 1
    gm.graph.eliminate_dead_code()
    return before - len(gm.graph.nodes) + respelled


def is_on_one_device(node: fx.Node) -> bool:
    """Whether a node's tensor is on the device of its first argument."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = tensor_value(source), tensor_value(node)
    return before is not None and after is not None and before.device == after.device


def is_identity(node: fx.Node) -> bool:
    """Whether the node returns its first argument unchanged."""
    if node.target not in MAYBE_IDENTITY:
        return False
    if node.target in ALIASES:
        return True
    if node.target in CONVERSIONS:
        return keeps_everything(node)
    if node.target is aten.dropout.default:
        return node.args[2] is False or node.args[1] in (0, 0.0)
    if node.target in SCALINGS:
        factor = node.args[1]  # a number, or a tensor, which is never taken for 1
        return isinstance(factor, int | float) and factor == 1 and keeps_everything(node)
    return node.target is aten.slice.Tensor and is_whole(node)


def is_whole(node: fx.Node) -> bool:
    """Whether a slice is all of what it is taken from, whatever the sizes."""
    source, dim, start, end, step = (*node.args, *(None,) * 4)[:5]
    if not isinstance(source, fx.Node) or type(start or 0) is not int or start or dim is None:
        return False
    whole = shape_of(source)[cast("int", dim)]
    return step in (None, 1) and (end in (None, sys.maxsize) or spell_sizes(end) == whole)


def keeps_everything(node: fx.Node) -> bool:
    """Whether shape, strides, dtype and device are those of the first argument."""
    source = node.args[0]
    before = tensor_value(source) if isinstance(source, fx.Node) else None
    after = tensor_value(node)
    if before is None or after is None:
        return False
    return (before.shape, before.stride(), before.dtype, before.device) == (
        after.shape,
        after.stride(),
        after.dtype,
        after.device,
    )
