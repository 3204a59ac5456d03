"""Find attention sites in a graph: from the attention operator out to the module that owns it.

What: a site is what the innermost module around an attention operator computes between its
inputs and those outputs that descend from the attention:

    %linear_3 = linear(%x, to_q) ...   %sdpa = scaled_dot_product_attention(%q, %k, %v)
    %div_1    = linear(%reshape, to_out)          # used outside: an output of the site
    transformer_blocks.0.attn1  self, fused, keeps [2, 36, 60]

Legal because every path from the operator to the rest of the graph leads through the
outputs, so that replacing them replaces the attention. Values that the module passes on but
that do not descend from the attention are left outside of the site: they stay computed.

Leaves alone: attention in the root module, attention with active dropout, a module that has
another attention inside, outputs that are not tensors. Each is reported with its reason, and
so is a softmax that is no attention.

Source: Vaswani et al. 2017 (attention); design by operator rather than by class name because
class names differ per model and operators do not.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import fx

from .support.attention_kind import kind_of
from .support.graphs import module_path, module_stack, tensor_value
from .support.module_sites import (
    Match,
    Operator,
    ancestors,
    belongs_to,
    group_by_call,
    match_site,
    numbered,
    owner_of,
)
from .support.vocabulary import NoMatch

aten = torch.ops.aten

FUSED = {
    aten.scaled_dot_product_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
SOFTMAX = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}
UNFUSED = "matmul_softmax"
MATMUL = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default}


def find_attention(gm: fx.GraphModule) -> tuple[list[Match], list[NoMatch]]:
    """All attention sites in execution order, and a reason for each candidate that is none."""
    owned: dict[str, list[Operator]] = {}
    near_misses: list[NoMatch] = []
    for node in gm.graph.nodes:
        try:
            operator = match_operator(node)
            if operator is not None:
                owned.setdefault(owner_of(node), []).append(operator)
        except NoMatch as miss:
            near_misses.append(miss)
    members = group_by_call(gm.graph.nodes, owned)
    around = find_nested(owned)
    matches: list[Match] = []
    for key, operators in owned.items():
        try:
            if key in around:
                refuse_nested(owned[key][0].result, around[key])
            matches.append(match_attention(key, members[key], operators))
        except NoMatch as miss:
            near_misses.append(miss)
    return numbered(matches), near_misses


def match_attention(key: str, members: list[fx.Node], operators: list[Operator]) -> Match:
    """The site that a module call makes of its attention operators.

    Raises:
        NoMatch: With the reason why the module's output cannot be kept.
    """
    first = operators[0]
    return match_site(
        key,
        members,
        [operator.result for operator in operators],
        "attention",
        kind=partial(kind_of, first.query, first.key),
        variant=first.variant,
        operators=operators,
    )


def find_nested(owned: dict[str, list[Operator]]) -> dict[str, fx.Node]:
    """Module calls with another attention inside, and the first such operator."""
    nested: dict[str, fx.Node] = {}
    for own, (operator, *_) in owned.items():
        for key, _ in module_stack(operator.result):
            if key != own and key in owned:
                nested.setdefault(key, operator.result)
    return nested


def refuse_nested(outer: fx.Node, inner: fx.Node) -> None:
    """Raise for a module call that has another attention inside: the inner one is the site."""
    raise NoMatch(f"another attention is inside, {module_path(inner)}", outer)


def is_candidate(node: fx.Node) -> bool:
    """Whether the node's target is an attention operator or the softmax of one."""
    return node.target in FUSED or node.target in SOFTMAX


def match_operator(node: fx.Node) -> Operator | None:
    """The attention operator at a node; None for a node that is not a candidate.

    Raises:
        NoMatch: The node is a candidate but not an attention that can be kept.
    """
    if node.target in FUSED:
        query, key, value = cast("tuple[fx.Node, ...]", node.args[:3])
        return Operator(node, query, key, value, None, "fused")
    if node.target in SOFTMAX:
        return match_unfused(node)
    return None


def match_unfused(softmax: fx.Node) -> Operator:
    """``matmul -> (scale, mask, cast) -> softmax -> (cast) -> matmul``, or the reason not."""
    scores = first_matmul(softmax, upwards=True)
    if scores is None:
        raise NoMatch(
            "softmax of something that is not a product of queries and keys", softmax
        )
    values = first_matmul(softmax, upwards=False)
    if values is None:
        raise NoMatch("softmax whose weights are not multiplied with values", softmax)
    operands = [n for n in scores.all_input_nodes if tensor_value(n) is not None][-2:]
    if len(operands) != 2:
        raise NoMatch("scores that are a product of a tensor with itself", scores)
    return Operator(
        values, operands[0], operands[1], other_operand(values, softmax), softmax, UNFUSED
    )


def other_operand(product: fx.Node, softmax: fx.Node) -> fx.Node:
    """The operand of a product of weights and values that is not the weights."""
    operands = [n for n in product.all_input_nodes if tensor_value(n) is not None]
    values = [n for n in operands if softmax not in ancestors([n])]
    if not values:
        raise NoMatch("weights that are multiplied with themselves", product)
    return values[-1]


def first_matmul(node: fx.Node, *, upwards: bool) -> fx.Node | None:
    """The nearest matmul above or below a node, within the node's own module."""
    home, seen, front = owner_of(node), {node}, [node]
    while front:
        current = front.pop(0)
        for near in current.all_input_nodes if upwards else current.users:
            if near in seen or not belongs_to(near, home):
                continue
            if near.target in MATMUL:
                return near
            seen.add(near)
            front.append(near)
    return None
