"""Attention operators: the spellings of attention that a graph may hold.

A spelling is one entry of `SPELLINGS`: the targets that make a node a candidate, and the
function that reads queries, keys and values off it. Everything else (blocks, sites, kinds,
entropies) reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch
from torch import fx

from .graphs import ancestors, tensor_value
from .module_paths import belongs_to, call_key
from .vocabulary import NoMatch

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten
CUSTOM = "custom"
"""The spelling that only its name tells: an operator of another library than torch."""
OF_TORCH = ("aten", "prims", "prim", "quantized", "inductor")
"""Libraries whose attention has spellings of its own."""
ATTENTION_NAMES = ("attention", "attn", "attend", "sdpa")
"""Parts of such names."""
MATMUL = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default}


@dataclass(frozen=True)
class AttentionOperator:
    """An attention operator: the nodes of its result, queries, keys and values.

    Attributes:
        result: What it gives.
        query: ``[..., queries, channels]``.
        key: ``[..., keys, channels]``; transposed where the graph multiplies by it.
        value: ``[..., keys, channels]``.
        weights: The softmax, where it is a node of its own.
        variant: The name of its spelling.
    """

    result: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    weights: fx.Node | None = None
    variant: str = ""


@dataclass(frozen=True)
class Spelling:
    """One way to write attention in a graph.

    Attributes:
        variant: Its name, in sites and reports.
        takes: Whether a target makes a node a candidate.
        match: Reads a candidate; raises `NoMatch` with the reason where it is no attention.
    """

    variant: str
    takes: Callable[[object], bool]
    match: Callable[[fx.Node], AttentionOperator]


def is_candidate(node: fx.Node) -> bool:
    """Whether the node's target is an attention operator or the softmax of one."""
    return spelling_of(node.target) is not None


def match_operator(node: fx.Node) -> AttentionOperator | None:
    """The attention operator at a node; None for a node that is not a candidate.

    Raises:
        NoMatch: The node is a candidate but not an attention that can be kept.
    """
    spelling = spelling_of(node.target)
    if spelling is None:
        return None
    return replace(spelling.match(node), variant=spelling.variant)


@lru_cache(maxsize=1024)
def spelling_of(target: object) -> Spelling | None:
    """The spelling whose candidate a target makes a node; None for none."""
    return next((each for each in SPELLINGS if each.takes(target)), None)


def match_fused(node: fx.Node) -> AttentionOperator:
    """One node that takes queries, keys and values."""
    query, key, value = cast("tuple[fx.Node, ...]", node.args[:3])
    return AttentionOperator(node, query, key, value)


def is_custom_attention(target: object) -> bool:
    """Whether an operator of another library than torch is named like an attention."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace in OF_TORCH:
        return False
    return any(name in str(target).lower() for name in ATTENTION_NAMES)


def match_custom(node: fx.Node) -> AttentionOperator:
    """An operator of another library, which takes queries, keys and values in this order."""
    given = (*node.args, *node.kwargs.values())
    tensors = [n for n in given if isinstance(n, fx.Node) and tensor_value(n) is not None]
    dims = [node.meta["val"].dim() for node in tensors[:3]]
    if len(dims) < 3 or len(set(dims)) > 1 or dims[0] < 3:
        raise NoMatch(
            f"{node.target} is named like an attention, but its first tensors are no queries, "
            f"keys and values: they have {dims} dimensions",
            node,
        )
    query, key, value = tensors[:3]
    return AttentionOperator(node, query, key, value)


def match_unfused(softmax: fx.Node) -> AttentionOperator:
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
    value = other_operand(values, softmax)
    return AttentionOperator(values, operands[0], operands[1], value, weights=softmax)


def other_operand(product: fx.Node, softmax: fx.Node) -> fx.Node:
    """The operand of a product of weights and values that is not the weights."""
    operands = [n for n in product.all_input_nodes if tensor_value(n) is not None]
    values = [n for n in operands if softmax not in ancestors([n])]
    if not values:
        raise NoMatch("weights that are multiplied with themselves", product)
    return values[-1]


def first_matmul(node: fx.Node, *, upwards: bool) -> fx.Node | None:
    """The nearest matmul above or below a node, within the node's own module."""
    home, seen, front = call_key(node), {node}, [node]
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


SPELLINGS = (  # the first entry with a node's target reads it
    Spelling(
        "fused",
        frozenset(
            {
                aten.scaled_dot_product_attention.default,
                aten._scaled_dot_product_flash_attention.default,
                aten._scaled_dot_product_flash_attention_for_cpu.default,
                aten._scaled_dot_product_efficient_attention.default,
                aten._scaled_dot_product_cudnn_attention.default,
            }
        ).__contains__,
        match_fused,
    ),
    Spelling(
        "matmul_softmax",
        frozenset(
            {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}
        ).__contains__,
        match_unfused,
    ),
    Spelling(CUSTOM, is_custom_attention, match_custom),
)
"""All spellings that are known."""
