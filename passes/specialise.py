"""Resolve the guards of a graph for given actions, and drop what is then dead.

Legal because an action is fixed for the whole step:

    %out : f32[2, 36, 60] = getitem(compute_or_reuse(%action, None, [[[%slot]]], ...), 0)
 -> REUSE    %out = %slot                     ; the site, and the norm and modulation before
                                                it, have no reader left and go
    STORE    %out = (body inlined) ; copy_(%slot, %out)
    COMPUTE  %out = (body inlined)            ; the slot is not even an input

A slot that would leave the graph as an output is copied first: its storage is overwritten by
a later step, and Inductor forbids outputs that alias inputs.

Leaves alone: everything that a live output needs.

Source: partial evaluation; PyTorch ``torch._inductor`` notes on input/output aliasing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

from dqar_fx.schedule.action import Action

from .support.editing import copy_meta, drop_unused_inputs, emit, inline
from .support.formats import FORMATS
from .support.graphs import has_effect
from .support.guards import compute_or_reuse, forecast
from .support.views import find_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .support.formats import CacheFormat

aten = torch.ops.aten


def specialise(gm: fx.GraphModule, actions: Sequence[Action]) -> int:
    """Resolve guard after guard, in graph order; the number of guards resolved.

    Raises:
        ValueError: ``actions`` has not one entry per guard.
    """
    guards = gm.graph.find_nodes(op="call_function", target=compute_or_reuse)
    if len(guards) != len(actions):
        raise ValueError(f"the graph has {len(guards)} guards but {len(actions)} actions came")
    for guard, action in zip(guards, actions, strict=True):
        resolve_guard(gm, guard, action)
    copy_slots_out(gm.graph)
    gm.graph.eliminate_dead_code(has_effect)
    drop_unused_inputs(gm)
    gm.delete_all_unused_submodules()  # bodies of resolved guards
    return len(guards)


def resolve_guard(gm: fx.GraphModule, guard: fx.Node, action: Action) -> None:
    """Put the branch that ``action`` takes in the place of a guard."""
    _, weights, slots, body, resume, cache_format, dtypes, inputs, others = cast(
        "Any", guard.args
    )
    kept_as = FORMATS[cache_format]

    def inner(owned: fx.Node) -> fx.GraphModule:
        return cast("fx.GraphModule", gm.get_submodule(str(owned.target)))

    with gm.graph.inserting_before(guard):
        if action in (Action.REUSE, Action.FORECAST):
            is_forecast = action == Action.FORECAST and weights is not None
            values = [
                read_slots(gm.graph, history, dtype, kept_as, weights)
                if is_forecast
                else read_slot(gm.graph, history[0], dtype, kept_as)
                for history, dtype in zip(slots, dtypes, strict=True)
            ]
            if resume is not None:
                values = inline(gm.graph, inner(resume), [*values, *others])
        else:
            values = inline(gm.graph, inner(body), inputs)
        if action == Action.STORE:
            for history, value in zip(slots, values[-len(slots) :], strict=True):
                write_slot(gm.graph, history[0], value, kept_as)
    for item in list(guard.users):
        item.replace_all_uses_with(values[cast("int", item.args[1])])
        gm.graph.erase_node(item)
    gm.graph.erase_node(guard)


def read_slot(
    graph: fx.Graph, buffers: Sequence[fx.Node], dtype: torch.dtype, kept_as: CacheFormat
) -> fx.Node:
    """Nodes that read a kept value."""
    return emit(graph, lambda *kept: (kept_as.read(kept, dtype),), buffers)[0]


def read_slots(
    graph: fx.Graph,
    history: Sequence[Sequence[fx.Node]],
    dtype: torch.dtype,
    kept_as: CacheFormat,
    weights: fx.Node,
) -> fx.Node:
    """Nodes that forecast a value from several kept ones."""
    size = len(history[0])

    def read(weights: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = range(0, len(flat), size)
        return (forecast(weights, [kept_as.read(flat[i : i + size], dtype) for i in places]),)

    return emit(graph, read, [weights, *(node for each in history for node in each)])[0]


def write_slot(
    graph: fx.Graph, buffers: Sequence[fx.Node], value: fx.Node, kept_as: CacheFormat
) -> None:
    """Nodes that keep a value, in place."""

    def write(value: torch.Tensor, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept_as.write(value, kept)
        return ()

    emit(graph, write, [value, *buffers])


def copy_slots_out(graph: fx.Graph) -> None:
    """Copy each output that is a slot, or a view of one."""
    output = graph.output_node()
    for node in dict.fromkeys(output.all_input_nodes):
        if "slot" in find_shown(node).meta:
            with graph.inserting_before(output):
                copied = graph.call_function(aten.clone.default, (node,))
            copied.meta = copy_meta(node)
            output.replace_input_with(node, copied)
