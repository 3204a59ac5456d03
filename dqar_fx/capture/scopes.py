"""Scopes of autocast and of gradient mode inside of a forward, put in line.

Of ``with torch.autocast(...)`` and ``with torch.no_grad()`` in a forward `torch.export` makes
a graph of its own, called by a higher-order operator. Here its nodes go where the call was,
with the records of their modules, so that a graph of one level is left:

    %b = wrap_with_autocast("cpu", torch.bfloat16, False, True, %body, %a)
 -> the nodes of %body, with %a for its input

A scope in which autocast is off casts nothing as long as it is off around the model too.
Where it is on, in a scope or around the call, operators are recorded before their arguments
are cast. Then the scopes' ends stay in the graph, for the tracing that follows to obey: it
writes the casts out as operators, after which nothing is left to autocast.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.amp import autocast_mode

from dqar_fx.passes.support.editing import inline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.export import ExportedProgram

AUTOCAST = torch.ops.higher_order.wrap_with_autocast
GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled
PLACE_OF_BODY: dict[Any, int] = {AUTOCAST: 4, GRADIENTS: 1}
"""Where among the arguments of a scope's operator its graph is; its inputs follow."""


def inline_scopes(exported: ExportedProgram, ambient: Iterable[str]) -> bool:
    """Put all scopes of a program in line; whether their casts are still to be written out.

    Args:
        exported: The program, which is changed.
        ambient: Types of the devices for which autocast is on around the call.

    Raises:
        NotImplementedError: The program has a graph inside of it that is no scope.
    """
    scopes = list(find_scopes(exported.graph_module))
    autocasts = [node for node in scopes if node.target is AUTOCAST]
    is_cast = bool(autocasts) and (any(ambient) or any(node.args[2] for node in autocasts))
    inline_in(exported.graph_module, keep_ends=is_cast)
    refuse_graphs(exported.graph)
    outputs = exported.graph.output_node().args[0]
    assert isinstance(outputs, (tuple, list))
    for spec, node in zip(exported.graph_signature.output_specs, outputs, strict=True):
        if isinstance(node, fx.Node):
            spec.arg.name = node.name  # what was a scope's result is a node of its body
    return is_cast


def find_scopes(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """The scopes of a graph and those inside of them."""
    for node in gm.graph.nodes:
        if node.target in PLACE_OF_BODY:
            yield node
            yield from find_scopes(body_of(gm, node))


def body_of(gm: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The graph that a scope's operator calls."""
    place = node.args[PLACE_OF_BODY[node.target]]
    assert isinstance(place, fx.Node)
    body = gm.get_submodule(str(place.target))
    assert isinstance(body, fx.GraphModule)
    return body


def inline_in(gm: fx.GraphModule, *, keep_ends: bool) -> None:
    """Put the scopes of a graph in line, inner ones first.

    Args:
        gm: The graph.
        keep_ends: Whether calls that enter and leave autocast stay around what was in it.
    """
    for node in [node for node in gm.graph.nodes if node.target in PLACE_OF_BODY]:
        body, place = body_of(gm, node), PLACE_OF_BODY[node.target]
        inline_in(body, keep_ends=keep_ends)
        is_kept = keep_ends and node.target is AUTOCAST
        with gm.graph.inserting_before(node):
            if is_kept:
                settings = node.args[:place]
                entered = gm.graph.call_function(autocast_mode._enter_autocast, settings)
            given: Any = node.args[place + 1 :]
            results = inline(gm.graph, body, given)
            if is_kept:
                gm.graph.call_function(autocast_mode._exit_autocast, (entered,))
        for item in list(node.users):  # a scope gives a tuple
            item.replace_all_uses_with(results[item.args[1]])
            gm.graph.erase_node(item)
        gm.graph.erase_node(node)
    for graph in gm.graph.find_nodes(op="get_attr"):
        if not graph.users:
            gm.graph.erase_node(graph)
    gm.recompile()


def refuse_graphs(graph: fx.Graph) -> None:
    """Raise for a graph inside of a graph: what runs has one level."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise NotImplementedError(f"{node.target} has a graph of its own, %{node.name}")


@contextmanager
def without_autocast(devices: Iterable[str]) -> Iterator[None]:
    """Turn autocast off for types of devices."""
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
