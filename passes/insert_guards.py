"""Rewrite every site into one guarded compute-or-reuse node.

Legal because a guard whose action is COMPUTE or STORE evaluates the site's own nodes on its
own inputs; only REUSE, which a verified branch table allows, gives another value:

    %q = linear(%x, to_q) ... %out = linear(%y, to_out)
->  %guard = compute_or_reuse(%action_3, [[%slot_3_0_0]], %body_3, "same", [f32], [%x, ...])
    %out   = getitem(%guard, 0)

Actions and slots become inputs of the graph: which one is taken is the caller's decision,
known on the host before the step starts.

Leaves alone: sites that do not take part.

Source: DQAR report, "Phase 2: attention output caching".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from .formats import FORMATS
from .graphs import copy_meta, extract, replace_by_call, tensor_value
from .vocabulary import Action, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from .find_attention import Match
    from .formats import CacheFormat


def compute_or_reuse(
    action: int,
    slots: Sequence[Sequence[torch.Tensor]],
    body: Callable[..., tuple[torch.Tensor, ...]],
    cache_format: str,
    dtypes: Sequence[torch.dtype],
    inputs: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """The guard: evaluate ``body``, or read what it gave at an earlier step.

    Args:
        action: An `Action`.
        slots: Per output, the buffers of the cache format.
        body: The site: maps ``inputs`` to a tuple of outputs.
        cache_format: Name of the format.
        dtypes: Per output, the dtype to read it in.
        inputs: What the site reads, parameters included.
    """
    kept_as = FORMATS[cache_format]
    if action == Action.REUSE:
        pairs = zip(slots, dtypes, strict=True)
        return tuple(kept_as.decode(tuple(kept), dtype) for kept, dtype in pairs)
    outputs = body(*inputs)
    if action == Action.STORE:
        for kept, output in zip(slots, outputs, strict=True):
            for buffer, part in zip(kept, kept_as.encode(output), strict=True):
                buffer.copy_(part)
    return outputs


fx.wrap("compute_or_reuse")


def insert_guards(gm: fx.GraphModule, matches: Sequence[Match], cache: CacheFormat) -> int:
    """Replace each match by a guard; the number of guards."""
    for column, match in enumerate(matches):
        insert_guard(gm, match, column, cache)
    return len(matches)


def insert_guard(gm: fx.GraphModule, match: Match, column: int, cache: CacheFormat) -> None:
    """Replace one site, whose actions stand in ``column`` of the branch table."""
    action = add_input(gm, f"action_{column}", {"action": column})
    slots = [
        [
            add_input(gm, f"slot_{column}_{j}_{b}", slot_meta(match, j, column, b, spec))
            for b, spec in enumerate(cache.specs(output))
        ]
        for j, output in enumerate(match.site.outputs)
    ]
    body, inputs = extract(gm, match.body, match.outputs)
    gm.add_submodule(f"body_{column}", body)
    dtypes = [output.dtype for output in match.site.outputs]

    def guard() -> fx.Node:
        owned = gm.graph.get_attr(f"body_{column}")
        owned.meta = {"is_graph": True, "nn_module_stack": stack}
        args = (action, slots, owned, cache.name, dtypes, inputs)
        node = gm.graph.call_function(compute_or_reuse, args)
        node.meta = {**copy_meta(match.outputs[0]), "site": match.site}
        return node

    stack = match.outputs[0].meta.get("nn_module_stack")
    replace_by_call(match.body, match.outputs, guard, before=match.body[-1].next)


def add_input(gm: fx.GraphModule, name: str, meta: dict[str, object]) -> fx.Node:
    """A new placeholder behind the others."""
    last = gm.graph.find_nodes(op="placeholder")[-1]
    with gm.graph.inserting_after(last):
        node = gm.graph.placeholder(name)
    node.meta = meta
    return node


def slot_meta(
    match: Match, output: int, column: int, buffer: int, spec: TensorSpec
) -> dict[str, object]:
    """The record of a slot's placeholder: which buffer it is, and its fake tensor."""
    value = tensor_value(match.outputs[output])
    mode = getattr(value, "fake_mode", None)
    assert mode is not None, "captured graphs carry fake tensors"
    with mode:
        return {"slot": (column, output, buffer), "val": spec.allocate()}
