"""Make what enters a block contiguous, so that equal blocks see equal strides.

Legal because a copy has the same values; done only where a compiler follows, since another
layout may take an eager operator to another kernel:

    %add : f32[2, 36, 60] strides (2160, 1, 36)      ; patch embedding, channels first
 -> %contiguous : f32[2, 36, 60] strides (2160, 60, 1)

Without it the first block is a structure of its own, and is compiled apart. What a stage of
conditioning gives is contiguous where a compiler follows, however it was captured; here the
values say so.

A view behind a copy whose strides allow it no longer is written as a reshape, and what else
needs the layout that it was captured with reads a copy of that layout.

Leaves alone: inputs whose strides are the same for all equal blocks, parameters, and what
stays outside of blocks.

Source: ``torch.compile`` guards on strides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .support.blocks import find_runs, find_siblings
from .support.editing import copy_meta
from .support.fake_values import layouts_of, refresh_values
from .support.graphs import graph_inputs, is_computing, tensor_value

if TYPE_CHECKING:
    from collections.abc import Collection

aten = torch.ops.aten


def unify_layouts(gm: fx.GraphModule, blocks: Collection[str]) -> int:
    """Insert a contiguous copy before blocks that read a strided tensor; their number."""
    settle_conditioning(gm)
    copies = list[fx.Node]()
    for group in find_siblings(find_runs(gm.graph.nodes, blocks)):
        for counterparts in zip(*(graph_inputs(run) for run in group), strict=False):
            values = map(tensor_value, counterparts)
            if len({None if value is None else value.stride() for value in values}) == 1:
                continue
            for source, run in zip(counterparts, group, strict=True):
                if is_strided(source):
                    copies.append(make_contiguous(gm.graph, source, run))
    refresh_values(
        gm.graph, {copied: copied.all_input_nodes[0].meta["val"] for copied in copies}
    )
    return len(copies)


def settle_conditioning(gm: fx.GraphModule) -> None:
    """Let the values of what stages give be contiguous, also where other stages read it."""
    settled: dict[fx.Node, object] = {}  # and the values before
    for call in gm.graph.find_nodes(op="call_module"):
        stage: Any = gm.get_submodule(str(call.target))
        inputs = stage.graph.find_nodes(op="placeholder")
        changed = {
            inner: former
            for inner, given in zip(inputs, call.args, strict=True)
            for former in [inner.meta["val"]]
            if given in settled and take_value(inner, given.meta["val"])
        }
        refresh_values(stage.graph, changed)
        for item in call.users:
            value = tensor_value(item)
            if value is not None and take_value(item, value.contiguous()):
                settled[item] = value
    refresh_values(gm.graph, settled)


def take_value(node: fx.Node, value: torch.Tensor) -> bool:
    """Give a node another fake value; whether its layout is another."""
    is_other = layouts_of(node.meta["val"]) != layouts_of(value)
    node.meta["val"] = value
    return is_other


def is_strided(node: fx.Node) -> bool:
    """Whether a node is a step's own tensor and not contiguous."""
    value = tensor_value(node)
    return is_computing(node) and value is not None and not value.is_contiguous()


def make_contiguous(graph: fx.Graph, source: fx.Node, run: list[fx.Node]) -> fx.Node:
    """Let the nodes of a run read a contiguous copy of ``source``; the copy."""
    with graph.inserting_after(source):
        copied = graph.call_function(aten.contiguous.default, (source,))
    copied.meta = copy_meta(source)  # with its module path: it joins the run that made it
    copied.meta["val"] = source.meta["val"].contiguous()
    for node in run:
        node.replace_input_with(source, copied)
    return copied
