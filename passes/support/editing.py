"""Editing fx graphs: cutting nodes out, putting calls and traced functions in.

`move_to_submodule` is the one way in which this package moves nodes into a graph of their own.
The new graph owns no parameters: what it reads becomes its inputs, tensors that flow first and
parameters last, so that graphs of equal structure can share one compiled function.
"""

from __future__ import annotations

import copy
import operator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from .graphs import graph_inputs, graph_outputs, parameter_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet


def copy_meta(source: fx.Node) -> dict[str, Any]:
    """A record of its own for a copied node: fx copies ``meta`` shallowly."""
    return dict(source.meta)


def copy_node(
    graph: fx.Graph,
    node: fx.Node,
    transform: Callable[[fx.Node], Any],
    name: str | None = None,
) -> fx.Node:
    """Copy a node to the end of a graph, with a record of its own.

    Arguments are set once the node is there: fx looks through those that it is given before
    for symbols, which takes as long as all else.

    Args:
        graph: The graph.
        node: The node of another graph, or of this one.
        transform: Gives what takes the place of each node among the arguments.
        name: What the name is made of; None for the node's own.
    """
    made = graph.create_node(node.op, node.target, name=name or node.name, type_expr=node.type)
    made.args = fx.map_arg(node.args, transform)
    if node.kwargs:
        made.kwargs = fx.map_arg(node.kwargs, transform)
    made.meta.update(node.meta)
    return made


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph, whose nodes have the same names."""
    made, copies = fx.Graph(tracer_cls=graph._tracer_cls), dict[fx.Node, fx.Node]()
    made.set_codegen(copy.deepcopy(graph._codegen))
    for node in graph.nodes:
        copies[node] = copy_node(made, node, copies.__getitem__)
    return made


def make_module(root: nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """A module of a graph, whose code is not generated before it is needed.

    Most graphs are rewritten and cut up, never run: to generate code for each after each pass
    takes longer than the passes.
    """
    return _LazyGraphModule(root, graph)


def generate_code(gm: fx.GraphModule) -> None:
    """Generate a module's code, if it is not up to date, so that ``forward`` may be taken."""
    _LazyGraphModule.force_recompile(gm)


def extract(
    gm: fx.GraphModule,
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    given: Sequence[fx.Node] = (),
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Copy ``nodes`` into a parameter-free graph module.

    Args:
        gm: The graph.
        nodes: What is copied.
        outputs: Those of ``nodes`` that it returns.
        given: What it takes as its first inputs, needed or not.

    Returns:
        The module, which maps its inputs to a tuple of ``outputs``, and the nodes of ``gm``
        to call it with after ``given``.
    """
    inputs = [n for n in graph_inputs(nodes) if n not in given]
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    root: dict[str, Any] = {}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # only graphs are met here first: they are owned, not passed
            root[str(node.target)] = gm.get_submodule(str(node.target))
            copies[node] = copy_node(graph, node, copy_of)
        return copies[node]

    for node in (*given, *inputs):
        copies[node] = graph.placeholder(node.name)
        copies[node].meta.update(node.meta)
        if parameter_path(node) is not None:
            copies[node].meta["parameter"] = parameter_path(node)
    for node in nodes:
        for source in node.all_input_nodes:
            copy_of(source)
        if node.op == "call_module":
            root[str(node.target)] = gm.get_submodule(str(node.target))
        copies[node] = copy_node(graph, node, copy_of)
    graph.output(tuple(copies[node] for node in outputs))
    return make_module(root, graph), inputs


def replace_by_call(
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    call: Callable[[], fx.Node],
    *,
    before: fx.Node,
    inside: AbstractSet[fx.Node] = frozenset(),
) -> fx.Node:
    """Put ``call`` (it returns a tuple of ``outputs``) where ``nodes`` were; erase these.

    Where outputs are not erased, nodes ``inside`` and the call itself go on reading them.
    """
    graph = before.graph
    with graph.inserting_before(before):
        caller = call()
        items = [
            graph.call_function(operator.getitem, (caller, i)) for i in range(len(outputs))
        ]
    caller.meta["val"] = tuple(node.meta.get("val") for node in outputs)
    for node, item in zip(outputs, items, strict=True):
        item.meta.update(node.meta)
        node.replace_all_uses_with(
            item, lambda user: user is not caller and user not in inside
        )
    for node in reversed(nodes):
        graph.erase_node(node)
    return caller


def move_to_submodule(
    gm: fx.GraphModule,
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    name: str,
    *,
    before: fx.Node,
) -> fx.Node:
    """Replace ``nodes`` by a call of a new submodule ``name``, inserted before a node.

    ``before`` must come after every input and before every user of ``outputs``.
    """
    body, inputs = extract(gm, nodes, outputs)
    gm.add_submodule(name, body)
    graph = gm.graph
    return replace_by_call(
        nodes, outputs, lambda: graph.call_module(name, tuple(inputs)), before=before
    )


def insert_call(like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call of an operator in the graph of ``like``, whose record it takes over."""
    node = like.graph.call_function(target, args)
    node.meta = copy_meta(like)
    node.meta.pop("sizes", None)
    node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
    return node


def replace_calls(
    graph: fx.Graph,
    target: Any,
    is_meant: Callable[[fx.Node], bool],
    write: Callable[[fx.Node, Callable[..., fx.Node]], fx.Node],
) -> int:
    """Replace those calls of an operator that are meant; their number.

    ``write`` is given a call and what inserts others before it, and returns what takes its
    place.
    """
    found = [n for n in graph.find_nodes(op="call_function", target=target) if is_meant(n)]
    for node in found:
        with graph.inserting_before(node):
            node.replace_all_uses_with(write(node, partial(insert_call, node)))
        graph.erase_node(node)
    return len(found)


def emit(
    graph: fx.Graph,
    function: Callable[..., tuple[torch.Tensor, ...]],
    inputs: Sequence[fx.Node],
) -> list[fx.Node]:
    """Trace a tensor function on the inputs' fake values and put its nodes here."""
    return inline(graph, trace_on(function, inputs), inputs)


def trace_on(
    function: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """A tensor function as a graph with an input for each of some nodes."""
    # each value an object of its own: nodes may share one, which would be a single input
    return make_fx(function)(*(node.meta["val"].detach() for node in inputs))


def inline(graph: fx.Graph, inner: fx.GraphModule, inputs: Sequence[fx.Node]) -> list[fx.Node]:
    """Copy the nodes of ``inner`` here, reading ``inputs``; its outputs."""
    copies = dict(zip(inner.graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in inner.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        copies[node] = copy_node(graph, node, copies.__getitem__)
    return [copies[node] for node in graph_outputs(inner.graph)]


def drop_unused_inputs(gm: fx.GraphModule) -> list[int]:
    """Erase placeholders without users; return the positions of those that stay."""
    kept = []
    for position, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        if node.users:
            kept.append(position)
        else:
            gm.graph.erase_node(node)
    return kept
