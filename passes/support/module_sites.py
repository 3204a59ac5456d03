"""Sites that a module makes: from anchors in the graph out to the module call around them.

What: given nodes that mark what a module does (its attention operators, its second linear),
a site is what the module call computes between its inputs and those outputs that descend from
the anchors.

Legal because every path from the anchors to the rest of the graph leads through the outputs,
so that replacing them replaces the module's work. Values that the module passes on but that do
not descend from the anchors are left outside of the site: they stay computed.

Leaves alone: modules whose outputs are not tensors, whose work is random, or that nothing
reads. Each is reported with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from .graphs import (
    ancestors,
    descendants,
    graph_inputs,
    is_random,
    source_line,
    tensor_value,
    used_by_others,
)
from .module_paths import module_stack
from .vocabulary import NoMatch, Site, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .attention_spellings import AttentionOperator


@dataclass(frozen=True)
class Match:
    """A site and its nodes.

    Attributes:
        site: The site.
        operators: Its attention operators.
        inputs: What it reads.
        body: What it computes.
        outputs: What it gives to the rest.
        kept: What is kept: the outputs, or nodes of the body that they descend from.
        bases: Where the site holds others: per output, the input that it adds to, or None.
            Kept is then the difference of the output from it, or the output (`take_base`).
        is_across_blocks: Whether it holds several blocks, and belongs to none of them.
    """

    site: Site
    operators: tuple[AttentionOperator, ...]
    inputs: tuple[fx.Node, ...]
    body: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    kept: tuple[fx.Node, ...]
    bases: tuple[fx.Node | None, ...] = ()
    is_across_blocks: bool = False


def match_site(
    key: str,
    members: Sequence[fx.Node],
    anchors: Sequence[fx.Node],
    what: str,
    *,
    kind: Callable[[Sequence[fx.Node], set[fx.Node]], str],
    variant: str,
    operators: Sequence[AttentionOperator] = (),
) -> Match:
    """The site that a module call makes of its anchors.

    Args:
        key: The key of the module call.
        members: Its nodes, in order.
        anchors: Those that its outputs must descend from.
        what: What they are, for reasons.
        kind: Tells the site's kind from its outputs and its nodes.
        variant: How the graph spells it.
        operators: Its attention operators, if it has some.

    Raises:
        NoMatch: With the reason why the module's output cannot be kept.
    """
    anchor = anchors[0]
    path = dict(module_stack(anchor))[key]
    if not path:
        raise NoMatch(f"{what} belongs to the root module: nothing smaller to keep", anchor)
    inside = set(members)
    descending = descendants(anchors, inside)
    outputs = [n for n in members if n in descending and used_by_others(n, inside)]
    for node in outputs:
        if tensor_value(node) is None:
            raise NoMatch(f"output of {path} is not a tensor", node)
    if not outputs:
        raise NoMatch(f"nothing outside of {path} reads its {what}", anchor)
    passed_on = [n for n in members if n not in descending and used_by_others(n, inside)]
    needed = ancestors(outputs, inside) - ancestors(passed_on, inside)
    body = [n for n in members if n in needed]
    for node in body:
        if is_random(node):
            reason = f"{what} with active dropout is random: reuse would freeze it"
            raise NoMatch(reason, node)
    call = key.rsplit("@", 1)
    site = Site(
        index=0,
        path=path if len(call) == 1 else f"{path}@{call[1]}",
        kind=kind(outputs, needed),
        variant=variant,
        kept=dense_specs(outputs),
        source=source_line(anchor),
    )
    return Match(
        site,
        tuple(operators),
        tuple(graph_inputs(body)),
        tuple(body),
        tuple(outputs),
        kept=tuple(outputs),
    )


def take_base(output: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """What is kept of an output: what it adds to its base, in its own dtype, or all of it."""
    return output if base is None else output - base.to(output.dtype)


def add_base(kept: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """The output that a kept value stands for, on the base of another step."""
    return kept if base is None else base.to(kept.dtype) + kept


def numbered(matches: Iterable[Match]) -> list[Match]:
    """Matches with their sites numbered in order."""
    return [replace(m, site=replace(m.site, index=i)) for i, m in enumerate(matches)]


def dense_specs(nodes: Iterable[fx.Node]) -> tuple[TensorSpec, ...]:
    """Dense specs of tensors with these nodes' shapes."""
    return tuple(dense_spec(node.meta["val"]) for node in nodes)


def dense_spec(value: torch.Tensor) -> TensorSpec:
    """The spec of a dense tensor with a tensor's shape, and its order of strides."""
    return TensorSpec.of(value if value.is_contiguous() else torch.empty_like(value))
