"""Make what enters a block contiguous, so that equal blocks see equal strides.

Legal because a copy has the same values; done only where a compiler follows, since another
layout may take an eager operator to another kernel:

    %add : f32[2, 36, 60] strides (2160, 1, 36)      ; patch embedding, channels first
 -> %contiguous : f32[2, 36, 60] strides (2160, 60, 1)

Without it the first block is a structure of its own, and is compiled apart.

Leaves alone: inputs whose strides are the same for all equal blocks, parameters,
conditioning, and what stays outside of blocks.

Source: ``torch.compile`` guards on strides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from .blocks import find_runs, find_siblings
from .fake_values import refresh_values
from .graphs import copy_meta, graph_inputs, is_computing, tensor_value

if TYPE_CHECKING:
    from collections.abc import Collection

aten = torch.ops.aten


def unify_layouts(gm: fx.GraphModule, blocks: Collection[str]) -> int:
    """Insert a contiguous copy before blocks that read a strided tensor; their number."""
    copies = list[fx.Node]()
    for group in find_siblings(find_runs(gm.graph.nodes, blocks)):
        for counterparts in zip(*(graph_inputs(run) for run in group), strict=False):
            if len({strides_of(source) for source in counterparts}) == 1:
                continue
            for source, run in zip(counterparts, group, strict=True):
                if is_strided(source):
                    copies.append(make_contiguous(gm.graph, source, run))
    refresh_values(gm.graph, copies)
    return len(copies)


def strides_of(node: fx.Node) -> tuple[int, ...] | None:
    """The strides of a tensor node."""
    value = tensor_value(node)
    return None if value is None else value.stride()


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
