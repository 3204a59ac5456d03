"""Let a graph also give what calibration looks at: what each site keeps, and its entropy.

The entropy of an attention is ``-sum(w log w) / log(keys)``, in [0, 1], of the weights w that
a query gives to the keys; the mean over batch, heads and queries. Of many queries, at most
`MAX_QUERIES` are taken, evenly spaced: weights are never kept, and need not fit as a whole.

Legal because only outputs are added:

    return (%sample : f32[2, 8, 12, 12],)
 -> return (%sample, %kept_0 : f32[2, 36, 60], %entropy_0 : f32[], %kept_1, ...)

Leaves alone: every other output.

Source: Shannon 1948; DQAR report, "Entropy-based gate".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .support.attention_spellings import CUSTOM
from .support.editing import emit
from .support.graphs import graph_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from .support.attention_spellings import AttentionOperator
    from .support.module_sites import Match

MAX_QUERIES = 256


def expose_attention(gm: fx.GraphModule, matches: Sequence[Match]) -> int:
    """Add outputs for each site, what it keeps and then its entropy; the number added."""
    output = gm.graph.output_node()
    added = []
    for match in matches:
        with gm.graph.inserting_before(output):
            added += [*match.kept, emit_entropy(gm.graph, match)]
    output.args = ((*graph_outputs(gm.graph), *added),)
    return len(added)


def emit_entropy(graph: fx.Graph, match: Match) -> fx.Node:
    """The mean entropy of a site's operators, float32, no dimensions; NaN if it has none."""
    if not match.operators:
        return emit(graph, lambda v: (v.new_full((), torch.nan).float(),), match.kept[:1])[0]
    nodes = [emit_one(graph, operator) for operator in match.operators]
    return emit(graph, lambda *each: (torch.stack(each).mean(),), nodes)[0]


def emit_one(graph: fx.Graph, operator: AttentionOperator) -> fx.Node:
    """The entropy of one operator, from its softmax or from its queries and keys; or NaN."""
    if operator.variant == CUSTOM:  # which dimension is which is not known
        return emit(graph, lambda q: (q.new_full((), torch.nan).float(),), [operator.query])[0]
    if operator.weights is not None:
        dim = arguments_of(operator.weights).get("dim", -1)
        return emit(graph, lambda w: (entropy_of(w.movedim(dim, -1)),), [operator.weights])[0]
    given = arguments_of(operator.result)
    mask = given.get("attn_mask", given.get("attn_bias"))
    scale, is_causal = given.get("scale"), bool(given.get("is_causal", False))

    def entropy(
        query: torch.Tensor, key: torch.Tensor, *mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (entropy_of(attend(query, key, *mask, scale=scale, is_causal=is_causal)),)

    masks = [] if mask is None else [mask]
    return emit(graph, entropy, [operator.query, operator.key, *masks])[0]


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator's call, by the names of its schema."""
    target: Any = node.target
    names = (argument.name for argument in target._schema.arguments)
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """The weights of a fused attention, float32, for at most `MAX_QUERIES` queries.

    Args:
        query: ``[..., heads, queries, channels]``.
        key: ``[..., heads, keys, channels]``; fewer heads where several queries share one.
        mask: Added to the scores, or True for keys that take part.
        scale: Of the scores; by default ``channels ** -0.5``.
        is_causal: Whether a query sees no later key.
    """
    rows = torch.arange(
        0, query.shape[-2], -(-query.shape[-2] // MAX_QUERIES), device=query.device
    )
    if query.dim() > 2 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    chosen = query.float().index_select(-2, rows)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = chosen @ key.float().mT * factor
    if mask is not None:
        mask = mask if mask.shape[-2] == 1 else mask.index_select(-2, rows)
        hidden = torch.zeros_like(scores).masked_fill(mask.logical_not(), -torch.inf)
        scores = scores + (hidden if mask.dtype == torch.bool else mask)
    if is_causal:
        keys = torch.arange(key.shape[-2], device=key.device)
        scores = scores.masked_fill(keys > rows[:, None], -torch.inf)
    weights: torch.Tensor = scores.softmax(-1)
    return weights


def entropy_of(weights: torch.Tensor) -> torch.Tensor:
    """Mean entropy of weights ``[..., keys]``, relative to that of equal ones."""
    nats: torch.Tensor = torch.special.entr(weights.float()).sum(-1).nanmean()
    return nats / max(math.log(weights.shape[-1]), 1e-9)
