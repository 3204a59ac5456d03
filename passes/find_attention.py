"""Find attention sites: from the attention operator out to the module that owns it.

A site is what the innermost module around an attention operator computes between its inputs
and those outputs that descend from the attention. Nothing is edited: matches are returned.

Legal because every path from the operator to the rest of the graph leads through these
outputs, so that replacing them replaces the attention:

    %linear : f32[2, 36, 60] = linear(%x, to_q) ...
    %sdpa : f32[2, 3, 36, 20] = scaled_dot_product_attention(%q, %k, %v)
    %linear_3 : f32[2, 36, 60] = linear(%reshape, to_out)   ; read outside of the module
 -> transformer_blocks.0.attn1  self, fused, keeps [2, 36, 60]

Values that the module passes on but that do not descend from the attention are left outside of
the site: they stay computed.

Leaves alone: attention in the root module, attention with active dropout, a module that has
another attention inside, outputs that are not tensors. Each is reported with its reason, and
so is a softmax that is no attention.

Source: Vaswani et al. 2017 (attention); design by operator rather than by class name because
class names differ per model and operators do not.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .support.attention_kind import attention_kind
from .support.attention_spellings import match_operator
from .support.module_paths import call_key, group_by_call, module_path, module_stack
from .support.module_sites import match_site, numbered
from .support.vocabulary import NoMatch

if TYPE_CHECKING:
    from torch import fx

    from .support.attention_spellings import AttentionOperator
    from .support.module_sites import Match


def find_attention(gm: fx.GraphModule) -> tuple[list[Match], list[NoMatch]]:
    """All attention sites in execution order, and a reason for each candidate that is none."""
    owned: dict[str, list[AttentionOperator]] = {}
    near_misses: list[NoMatch] = []
    for node in gm.graph.nodes:
        try:
            operator = match_operator(node)
            if operator is not None:
                owned.setdefault(call_key(node), []).append(operator)
        except NoMatch as miss:
            near_misses.append(miss)
    members = group_by_call(gm.graph.nodes, owned)
    around = find_nested(owned)
    matches: list[Match] = []
    for key, operators in owned.items():
        if key in around:  # the inner one is the site
            reason = f"another attention is inside, {module_path(around[key])}"
            near_misses.append(NoMatch(reason, operators[0].result))
            continue
        try:
            matches.append(match_attention(key, members[key], operators))
        except NoMatch as miss:
            near_misses.append(miss)
    return numbered(matches), near_misses


def match_attention(
    key: str, members: list[fx.Node], operators: list[AttentionOperator]
) -> Match:
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
        kind=partial(attention_kind, first.query, first.key),
        variant=first.variant,
        operators=operators,
    )


def find_nested(owned: dict[str, list[AttentionOperator]]) -> dict[str, fx.Node]:
    """Module calls with another attention inside, and the first such operator."""
    nested: dict[str, fx.Node] = {}
    for own, (operator, *_) in owned.items():
        for key, _ in module_stack(operator.result):
            if key != own and key in owned:
                nested.setdefault(key, operator.result)
    return nested
