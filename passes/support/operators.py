"""How often each operator occurs in a graph, whatever it is nested in."""

from __future__ import annotations

import operator
from collections import Counter
from typing import cast

import torch
from torch import fx

from .graphs import written_inputs
from .guards import compute_or_reuse

READ = "read slot"
"""What the first read of a slot counts as."""


def count_operators(gm: fx.GraphModule) -> Counter[str]:
    """Operators by name, and what is around them.

    A guard counts as ``compute_or_reuse`` and what it computes, a call of another graph as
    ``stage`` or ``region`` and what is inside of it, a slot that is read as ``read slot``.
    Picking one of several values counts as nothing.
    """
    found, functions = Counter[str](), Counter[object]()
    for node in gm.graph.nodes:
        if node.op == "call_function":  # most nodes are calls of few functions
            functions[node.target] += 1
        else:
            found.update(names_of(node))
        inner = inner_graph(gm, node)
        if inner is not None:
            found.update(count_operators(inner))
    functions.pop(operator.getitem, None)
    for target, count in functions.items():
        found[name_of_function(target)] += count
    return found


def count_changes(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Count how many more of each operator there are, or, negative, fewer; by name."""
    names = sorted(before | after)
    return {name: after[name] - before[name] for name in names if after[name] != before[name]}


def inner_graph(gm: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    """The graph that a node calls: of a guard its body, of a stage or region its own."""
    if node.target is compute_or_reuse:
        return submodule(gm, cast("fx.Node", node.args[3]))
    if node.op != "call_module":
        return None
    inner = gm.get_submodule(str(node.target))
    return inner if isinstance(inner, fx.GraphModule) else None


def submodule(gm: fx.GraphModule, owned: fx.Node) -> fx.GraphModule:
    """The graph that an argument of a guard stands for."""
    return cast("fx.GraphModule", gm.get_submodule(str(owned.target)))


def names_of(node: fx.Node) -> list[str]:
    """What a node that calls no function counts as: one name, or none."""
    if node.op == "placeholder" and "slot" in node.meta and is_read(node):
        return [READ]
    return [name_of(node)] if node.op in ("call_module", "call_method") else []


def name_of_function(target: object) -> str:
    """A function, in a word."""
    is_operator = isinstance(target, torch._ops.OpOverload)
    return str(target) if is_operator else str(getattr(target, "__name__", target))


def name_of(node: fx.Node) -> str:
    """The operator of a node, in a word."""
    if node.op != "call_module":
        return name_of_function(node.target)
    if "stage" in node.meta:
        return "stage"
    return "region" if "block" in node.meta else f"call {node.target}"


def is_read(slot: fx.Node) -> bool:
    """Whether a node reads a slot itself: a guard only may, and a call hands it on."""
    return any(
        user.op != "call_module"
        and user.target is not compute_or_reuse
        and slot not in written_inputs(user)
        for user in slot.users
    )
