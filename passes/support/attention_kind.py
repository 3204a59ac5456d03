"""Tell self, cross and joint attention apart by where queries and keys come from.

| kind  | rule                                                                         |
|-------|------------------------------------------------------------------------------|
| joint | two outputs, or queries joined from streams with different origins           |
| cross | keys descend from other inputs of the site than queries do                   |
| self  | otherwise                                                                    |

A join is an ``aten.cat`` whose operands have different origins; the ``cat`` of a rotary
embedding joins two halves of one tensor and does not count. Parameters and conditioning are
no origins: rotary tables are read by queries and keys alike, hoisted text by keys alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from .graphs import CONCATENATIONS, is_call_output, is_static_input

if TYPE_CHECKING:
    from collections.abc import Sequence


def attention_kind(
    query: fx.Node, key: fx.Node, outputs: Sequence[fx.Node], body: set[fx.Node]
) -> str:
    """The kind of an attention site, from its query, key and output nodes."""
    origins: dict[fx.Node, frozenset[fx.Node]] = {}
    if len(outputs) > 1 or joins_streams(query, body, origins):
        return "joint"
    if origins_of(query, body, origins) != origins_of(key, body, origins):
        return "cross"
    return "self"


def origins_of(
    node: fx.Node, body: set[fx.Node], known: dict[fx.Node, frozenset[fx.Node]]
) -> frozenset[fx.Node]:
    """The inputs of ``body`` that a node descends from; parameters, conditioning left out."""
    if node not in known:
        if node not in body:
            given = is_static_input(node) or is_call_output(node)
            known[node] = frozenset() if given else frozenset({node})
        else:
            known[node] = frozenset().union(
                *(origins_of(source, body, known) for source in node.all_input_nodes)
            )
    return known[node]


def joins_streams(
    query: fx.Node, body: set[fx.Node], known: dict[fx.Node, frozenset[fx.Node]]
) -> bool:
    """Whether a query is concatenated from operands with different origins."""
    front, seen = [query], set[fx.Node]()
    while front:
        node = front.pop()
        if node in seen or node not in body:
            continue
        seen.add(node)
        origins = {origins_of(operand, body, known) for operand in node.all_input_nodes}
        if node.target in CONCATENATIONS and len(origins) > 1:
            return True
        front.extend(node.all_input_nodes)
    return False
