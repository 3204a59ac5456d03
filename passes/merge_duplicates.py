"""Compute equal expressions once.

Legal because the operators are pure: equal operator, equal arguments, equal value:

    %sin : f32[2, 128] = sin(%t)     ; block 0
    %sin_1 : f32[2, 128] = sin(%t)   ; block 1
 -> %sin : f32[2, 128] = sin(%t)     ; read by both

In class-conditional DiT every block owns a timestep embedder; the sinusoids in front of them
are the same for all.

Leaves alone: random operators, operators that write, and calls of submodules.

Source: any compiler textbook (common subexpression elimination).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .support.graphs import is_pure
from .support.sizes import spell_sizes

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from torch import fx


def merge_duplicates(gm: fx.GraphModule, among: Collection[fx.Node] | None = None) -> int:
    """Let users of a node read the first one that computes its value; the number merged.

    ``among`` restricts it to some nodes of the graph.
    """
    first: dict[Hashable, fx.Node] = {}
    rewrites = 0
    for node in list(gm.graph.nodes):
        if not (among is None or node in among) or not is_pure(node):
            continue
        key = (node.op, str(node.target), repr(spell_sizes((node.args, node.kwargs))))
        if key in first:
            node.replace_all_uses_with(first[key])
            gm.graph.erase_node(node)
            rewrites += 1
        else:
            first[key] = node
    return rewrites
