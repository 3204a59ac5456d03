"""Find feed-forward sites: two linears and an activation between, in a module of a block.

A site is what the innermost module around both linears computes. Nothing is edited: matches
are returned.

Legal because every path from the second linear to the rest of the graph leads through the
module's outputs, as for attention:

    %linear_4 : f32[2, 36, 240] = linear(%x, net.0)         ; %x is f32[2, 36, 60]
    %gelu : f32[2, 36, 240] = gelu(%linear_4)
    %linear_5 : f32[2, 36, 60] = linear(%gelu, net.2)
 -> transformer_blocks.0.ff  feed_forward, gelu, keeps [2, 36, 60]

Leaves alone: two linears that only the block itself holds together, and those whose second
reads attention as well, as in Flux's single-stream blocks; a module that holds an attention;
linears outside of blocks, which embed. All but the last are reported.

Source: Vaswani et al. 2017 (position-wise feed-forward); FORA, arXiv 2407.01425 (reused
beside attention).
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch

from .support.attention_spellings import is_candidate
from .support.blocks import block_of, find_blocks
from .support.graphs import CONCATENATIONS, is_computing
from .support.module_paths import group_by_call, module_stack
from .support.module_sites import match_site, numbered
from .support.views import aliases_input
from .support.vocabulary import NoMatch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import fx

    from .support.module_sites import Match

aten = torch.ops.aten
LINEAR = {aten.linear.default, aten.addmm.default, aten.mm.default}
FEED_FORWARD_ACTIVATIONS = {
    aten.gelu.default,
    aten.silu.default,
    aten.relu.default,
    aten.mish.default,
    aten.leaky_relu.default,
}
KIND = "feed_forward"


def find_feed_forward(gm: fx.GraphModule) -> tuple[list[Match], list[NoMatch]]:
    """All feed-forward sites in execution order, and a reason for each that is none."""
    blocks = frozenset(find_blocks(gm.graph.nodes))
    near_misses: list[NoMatch] = []
    found: dict[str, tuple[fx.Node, fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.target not in LINEAR or not block_of(node, blocks):
            continue
        activation = nearest_source(node, FEED_FORWARD_ACTIVATIONS)
        if activation is None:
            continue
        first = linear_before(activation)
        if first is None:
            continue
        try:
            found.setdefault(common_call(first, node, blocks), (node, activation))
        except NoMatch as miss:
            near_misses.append(miss)
    members = group_by_call(gm.graph.nodes, found)
    matches: list[Match] = []
    for key, pair in found.items():
        try:
            matches.append(match_feed_forward(key, members[key], *pair))
        except NoMatch as miss:
            near_misses.append(miss)
    near_misses += find_joined(gm.graph.nodes, blocks, matches)
    return numbered(matches), near_misses


def find_joined(
    nodes: Iterable[fx.Node], blocks: Collection[str], matches: Sequence[Match]
) -> list[NoMatch]:
    """Feed-forwards whose second linear reads attention as well: a reason for each."""
    known = {node for match in matches for node in match.body}
    reason = "a feed-forward joined with other values before its second linear"
    return [
        NoMatch(f'{reason}: sites="block" reuses both', node)
        for node in nodes
        if node.target in FEED_FORWARD_ACTIVATIONS
        and node not in known
        and block_of(node, blocks)
        and linear_before(node) is not None
        and any(user.target in CONCATENATIONS for user in node.users)
    ]


def match_feed_forward(
    key: str, members: Sequence[fx.Node], last: fx.Node, activation: fx.Node
) -> Match:
    """The site of a module call.

    Raises:
        NoMatch: It holds an attention, or its output cannot be kept.
    """
    if any(is_candidate(node) for node in members):
        raise NoMatch("a feed-forward beside an attention, in one module", last)
    variant = str(activation.target).split(".")[1]
    return match_site(
        key, members, [last], "feed-forward", kind=lambda *_: KIND, variant=variant
    )


def linear_before(activation: fx.Node) -> fx.Node | None:
    """The linear that an activation reads, through what is elementwise."""
    return nearest_source(activation, LINEAR)


def nearest_source(node: fx.Node, targets: Collection[object]) -> fx.Node | None:
    """The nearest source of a kind, through elementwise operators, views and casts."""
    seen, front = {node}, list(node.all_input_nodes)
    while front:
        source = front.pop(0)
        if source in seen or not is_computing(source):
            continue
        if source.target in targets:
            return source
        seen.add(source)
        if is_transparent(source):
            front.extend(source.all_input_nodes)
    return None


def is_transparent(node: fx.Node) -> bool:
    """Whether a node neither mixes channels nor tokens: elementwise, or a view."""
    if node.target not in LINEAR and isinstance(node.target, torch._ops.OpOverload):
        return aliases_input(node) or torch.Tag.pointwise in node.target.tags
    return node.target is operator.getitem


def common_call(first: fx.Node, last: fx.Node, blocks: Collection[str]) -> str:
    """The innermost module call around two nodes.

    Raises:
        NoMatch: It is a block, or none inside of one.
    """
    other = {key for key, _ in module_stack(first)}
    shared = [(key, path) for key, path in module_stack(last) if key in other]
    key, path = shared[-1] if shared else ("", "")
    if not path or path in blocks or not block_of(last, blocks):
        raise NoMatch("a feed-forward that no module of its own holds", last)
    return key
