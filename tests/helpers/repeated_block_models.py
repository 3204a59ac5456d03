"""Models that repeat blocks, and the whole of a captured graph as values that compare."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from dqar_fx.capture import capture as capturing
from dqar_fx.passes.support.graphs import ancestors
from dqar_fx.passes.support.module_paths import module_stack

WIDTH = 4
IRRELEVANT = {"torch_fn"}
"""Parameters have it from whichever operator read them last."""


def everything(gm: fx.GraphModule) -> list[tuple[Any, ...]]:
    """All about the nodes that count but the identity of values and numbers in names."""
    counting = ancestors([gm.graph.output_node()])  # numbers have gaps where dead nodes were
    nodes = [node for node in gm.graph.nodes if node in counting]
    index = {node: f"%{i}" for i, node in enumerate(nodes)}
    return [
        (
            node.op,
            str(node.target),
            re.sub(r"_\d+$", "", node.name),
            str(fx.map_arg((node.args, node.kwargs), lambda n: index[n])),
            node.meta.get("nn_module_stack"),
            node.meta.get("stack_trace"),
            describe(node.meta.get("val")),
            sorted(node.meta.keys() - IRRELEVANT),
        )
        for node in nodes
    ]


def is_read_elsewhere(node: fx.Node) -> bool:
    """Whether a module reads it that is not within the one that it is of, below the root."""
    own = [path for _, path in module_stack(node)][:2]
    return any([path for _, path in module_stack(user)][:2] != own for user in node.users)


def describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str((value.shape, value.stride())), value.dtype, value.device  # may be symbols
    return [describe(each) for each in value] if isinstance(value, (list, tuple)) else value


def compare(model: nn.Module, args=(), kwargs=None) -> fx.GraphModule | None:
    """Check a graph of repeats against that of all blocks, and its values; None for none."""
    kwargs = kwargs or {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of export's, as capture does
        expected = capturing.trace(model, args, kwargs).gm
        found = capturing.trace_repeats(model, args, kwargs)
        wanted = pytree.tree_leaves(copy.deepcopy(model)(*args, **kwargs))
    if found is None:
        return None
    gm = found.gm
    assert everything(gm) == everything(expected)
    crossing = [node.meta["val"] for node in gm.graph.nodes if is_read_elsewhere(node)]
    assert len({id(each) for each in crossing}) == len(crossing)
    made = gm(*pytree.tree_leaves((args, kwargs)))
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    return gm


class Step(nn.Module):
    """A block with settings; each makes it another kind."""

    def __init__(self, scale=1.0, turn=False, double=False, pair=False, inner=0):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("shift", torch.randn(WIDTH))
        self.scale, self.turn, self.double, self.pair = scale, turn, double, pair
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(inner))

    def forward(self, x, context, *, gain=1.0):
        y = torch.tanh(self.linear(x) * self.scale + self.shift + context)
        if self.turn:
            y = y.flip(0)
        for layer in self.inner:
            y = layer(y) + x
        if self.double:
            y = self.linear(y) * gain
        return (y, context) if self.pair else y


class Tower(nn.Module):
    """Blocks one after the other, given a context that the last one may have changed."""

    def __init__(self, settings, gains=None):
        super().__init__()
        self.blocks = nn.ModuleList(Step(**each) for each in settings)
        self.gains = gains or [1.0] * len(settings)

    def forward(self, x, context):
        for block, gain in zip(self.blocks, self.gains, strict=True):
            out = block(x, context, gain=gain)
            x, context = out if isinstance(out, tuple) else (out, context + x)
        return x


def inputs():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, WIDTH, generator=generator) for _ in range(2))
