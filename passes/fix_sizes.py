"""Put the sizes of one call into a graph that was captured once for all shapes.

Legal because a number that depends on sizes knows its expression, and the capture says for
which sizes it holds:

    %view : f32[4, 36, 3, 20] = view(%x, [4, -1, 3, 20])    ; captured; 4 is the batch
 -> %view : f32[8, 36, 3, 20] = view(%x, [8, -1, 3, 20])

Shapes and strides of all values are computed anew, of the inputs' new ones. What a guard keeps
follows from its body, and so do its slots.

Leaves alone: graphs in which no number depends on sizes, but for their values.

Source: constant propagation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

from .support.formats import FORMATS
from .support.graphs import graph_outputs, tensor_value
from .support.guards import compute_or_reuse
from .support.runner import fork
from .support.sizes import map_sizes, number_at, reads_sizes
from .support.vocabulary import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .support.sizes import Sizes


def fix_sizes(
    gm: fx.GraphModule, sizes: Sizes, inputs: Sequence[Any], *, settles: bool = False
) -> int:
    """Fix the sizes of a graph; the number of nodes whose arguments are others.

    Args:
        gm: The graph. Graphs that it owns are replaced by others.
        sizes: The value of each symbol.
        inputs: The values of its first inputs; others keep theirs.
        settles: Whether what stages of conditioning give is made contiguous.
    """
    changed = put_numbers(gm.graph, sizes)
    places = gm.graph.find_nodes(op="placeholder")
    for node, value in zip(places, inputs, strict=False):
        node.meta["val"] = value
    values = [v for v in map(tensor_value, gm.graph.nodes) if v is not None]
    if not values:
        return changed
    with cast("Any", values[0]).fake_mode:
        for node in gm.graph.nodes:
            node.meta.pop("sizes", None)
            if node.op == "call_module":
                changed += fix_call(gm, node, sizes, settles=settles)
            elif node.target is compute_or_reuse:
                changed += fix_guard(gm, node, sizes)
            elif node.op == "call_function":
                node.meta["val"] = node.target(*values_of(node.args), **values_of(node.kwargs))
    return changed


def put_numbers(graph: fx.Graph, sizes: Sizes) -> int:
    """Put numbers where arguments depend on sizes; the number of nodes that have such ones."""
    found = [node for node in graph.nodes if reads_sizes(node)]
    for node in found:
        node.args, node.kwargs = map_sizes(
            (node.args, node.kwargs), lambda number: number_at(number, sizes)
        )
    return len(found)


def values_of(args: Any) -> Any:
    """Arguments with the values of nodes in their place."""
    return fx.map_arg(args, lambda node: node.meta["val"])


def fix_inner(
    gm: fx.GraphModule, target: str, sizes: Sizes, inputs: Sequence[Any]
) -> tuple[int, list[Any]]:
    """Fix a graph that another owns; the nodes changed, and the values that it gives."""
    inner = fork(cast("fx.GraphModule", gm.get_submodule(target)))
    changed = fix_sizes(inner, sizes, inputs)
    gm.set_submodule(target, inner)
    return changed, [node.meta["val"] for node in graph_outputs(inner.graph)]


def fix_call(gm: fx.GraphModule, call: fx.Node, sizes: Sizes, *, settles: bool) -> int:
    """Fix an outlined graph, and the values of its call."""
    changed, given = fix_inner(gm, str(call.target), sizes, values_of(call.args))
    if settles and "stage" in call.meta:
        given = [settle(value) for value in given]
    call.meta["val"] = tuple(given)
    return changed


def settle(value: Any) -> Any:
    """What a stage of conditioning gives where a compiler follows."""
    return value.contiguous() if isinstance(value, torch.Tensor) else value


def fix_guard(gm: fx.GraphModule, guard: fx.Node, sizes: Sizes) -> int:
    """Fix the graphs of a guard, the layouts of its slots, and its values."""
    _, _, slots, body, resume, cache, _, inputs, others = cast("Any", guard.args)
    changed, results = fix_inner(gm, str(body.target), sizes, values_of(inputs))
    kept = results[-len(slots) :]
    if resume is not None:
        after = [*kept, *values_of(others)]
        changed += fix_inner(gm, str(resume.target), sizes, after)[0]
    site = guard.meta["site"]
    is_residual = site.variant == "residual"
    like = results[: len(slots)] if is_residual else kept
    specs = tuple(TensorSpec.of(torch.empty_like(value)) for value in like)
    for spec, history in zip(specs, slots, strict=True):
        for buffers in history:
            for buffer, node in zip(FORMATS[cache].specs(spec), buffers, strict=True):
                node.meta["val"] = buffer.make_empty()
    guard.meta["site"] = replace(site, kept=specs)
    guard.meta["val"] = tuple(results)
    return changed
