"""Rewrite every site into one guarded compute-or-reuse node.

Legal because a guard whose action is COMPUTE or STORE evaluates the site's own nodes on its
own inputs; only REUSE, which a verified branch table allows, gives another value:

    %q : f32[2, 36, 60] = linear(%x, to_q) ... %out : f32[2, 36, 60] = linear(%y, to_out)
 -> %guard = compute_or_reuse(%action_3, None, [[[%slot_3_0_0]]], %body_3, None, "same", [f32],
                              [%x, ...], [])
    %out : f32[2, 36, 60] = getitem(%guard, 0)       ; %slot_3_0_0 is f32[2, 36, 60]

Where keys and values are kept instead of the output, ``%resume_3`` takes the place of the
second None: what leads from them, and from the inputs after it, to the output.

A residual site's guard stands behind it and keeps what the site adds to its inputs; what only
its outputs need is dead where the guard reads:

    %out   = getitem(%guard, 0)   ; compute_or_reuse(..., %body, %resume, ..., [%y, %x], [%x])
                                    body: %y, %y - %x   resume: %x + %kept

Actions and slots become inputs of the graph: which one is taken is the caller's decision,
known on the host before the step starts.

Leaves alone: sites that do not take part.

Source: DQAR report, "Phase 1: K/V caching" and "Phase 2: attention output caching".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .support.editing import copy_meta, extract, replace_by_call, trace_on
from .support.graphs import ancestors, tensor_value
from .support.guards import compute_or_reuse
from .support.module_sites import add_base, take_base
from .support.vocabulary import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .support.formats import CacheFormat
    from .support.module_sites import Match


def insert_guards(
    gm: fx.GraphModule, matches: Sequence[Match], cache: CacheFormat, history: int = 1
) -> int:
    """Replace each match by a guard that keeps ``history`` steps; the number of guards."""
    given = [add_inputs(gm, match, i, cache, history) for i, match in enumerate(matches)]
    place = {node: number for number, node in enumerate(gm.graph.nodes)}

    def turn(column: int) -> tuple[bool, int, int]:
        """Residuals before what they contain, and before what they add to."""
        body = matches[column].body
        return not matches[column].bases, -place[body[-1]], -len(body)

    for column in sorted(range(len(matches)), key=turn):
        insert_guard(gm, matches[column], column, cache.name, given[column])
    return len(matches)


@dataclass(frozen=True)
class GuardInputs:
    """The inputs of a graph that belong to one guard.

    Attributes:
        action: The input that says what to do.
        weights: The input with the weights of a forecast; None if one step is kept.
        slots: Per kept value and step that is kept, newest first, the inputs for the
            buffers of the format.
    """

    action: fx.Node
    weights: fx.Node | None
    slots: list[list[list[fx.Node]]]


def add_inputs(
    gm: fx.GraphModule, match: Match, column: int, cache: CacheFormat, history: int
) -> GuardInputs:
    """New placeholders for a site, whose actions stand in ``column`` of the branch table."""
    action = add_input(gm, f"action_{column}", {"action": column})
    weights = add_weights(gm, match, column, history) if history > 1 else None
    slots = [
        [
            [
                add_slot(gm, match, (column, j, h, b), spec, history)
                for b, spec in enumerate(cache.specs(kept))
            ]
            for h in range(history)
        ]
        for j, kept in enumerate(match.site.kept)
    ]
    return GuardInputs(action, weights, slots)


def insert_guard(
    gm: fx.GraphModule, match: Match, column: int, cache_format: str, given: GuardInputs
) -> None:
    """Put the guard of one site where the site was, or behind it if it is a residual."""
    body, inputs, after, others = cut_out(gm, match)
    dtypes = [kept.dtype for kept in match.site.kept]

    def own(name: str, inner: fx.GraphModule | None) -> fx.Node | None:
        if inner is None:
            return None
        gm.add_submodule(name, inner)
        node = gm.graph.get_attr(name)
        node.meta = {"is_graph": True, "nn_module_stack": stack}
        return node

    def guard() -> fx.Node:
        graphs = own(f"body_{column}", body), own(f"resume_{column}", after)
        head = (given.action, given.weights, given.slots, *graphs)
        args = (*head, cache_format, dtypes, inputs, others)
        node = gm.graph.call_function(compute_or_reuse, args)
        node.meta = {**copy_meta(match.outputs[0]), "site": match.site}
        return node

    # the guard of what belongs to no block is a run of its own
    made_by = match.outputs[0].meta.get("nn_module_stack")
    stack = None if match.is_across_blocks else made_by
    caller = replace_by_call(
        () if match.bases else match.body,
        match.outputs,
        guard,
        before=match.body[-1].next,
        inside=frozenset(match.body),
    )
    for node in (caller, *caller.users):
        node.meta["nn_module_stack"] = stack


def cut_out(
    gm: fx.GraphModule, match: Match
) -> tuple[fx.GraphModule, list[fx.Node], fx.GraphModule | None, list[fx.Node]]:
    """A site's body and its inputs, and what resumes from kept values and its inputs."""
    if match.bases:
        body, after = residual_graphs(match)
        bases = list(filter(None, match.bases))
        return body, [*match.outputs, *bases], after, bases
    if match.kept == match.outputs:
        return *extract(gm, match.body, match.outputs), None, []
    body, inputs = extract(gm, match.body, match.outputs + match.kept)
    rest = ancestors(match.outputs, set(match.body) - set(match.kept))
    resume = [n for n in match.body if n in rest]
    return body, inputs, *extract(gm, resume, match.outputs, match.kept)


def residual_graphs(match: Match) -> tuple[fx.GraphModule, fx.GraphModule]:
    """``outputs, bases -> outputs, differences`` and ``differences, bases -> outputs``."""
    size, bases = len(match.outputs), list(filter(None, match.bases))

    def pair(given: Sequence[torch.Tensor]) -> zip[tuple[torch.Tensor, torch.Tensor | None]]:
        rest = iter(given[size:])
        by_output = [None if base is None else next(rest) for base in match.bases]
        return zip(given[:size], by_output, strict=True)

    def body(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*given[:size], *(take_base(*each) for each in pair(given)))

    def resume(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(add_base(*each) for each in pair(given))

    nodes = (*match.outputs, *bases)
    return trace_on(body, nodes), trace_on(resume, nodes)


def add_input(gm: fx.GraphModule, name: str, meta: dict[str, object]) -> fx.Node:
    """A new placeholder behind the others."""
    last = gm.graph.find_nodes(op="placeholder")[-1]
    with gm.graph.inserting_after(last):
        node = gm.graph.placeholder(name)
    node.meta = meta
    return node


def add_slot(
    gm: fx.GraphModule,
    match: Match,
    key: tuple[int, int, int, int],
    spec: TensorSpec,
    history: int,
) -> fx.Node:
    """A new placeholder for one buffer of a slot.

    Args:
        gm: The graph.
        match: The site.
        key: Column of the branch table, kept value, place in the history, its buffer.
        spec: The layout of the buffer.
        history: How many places there are; the name tells which one if several.
    """
    column, value, place, part = key
    numbers = (column, value, part) if history == 1 else (column, value, place, part)
    with fake_mode_of(match):
        meta: dict[str, object] = {
            "slot": key,
            "site_path": match.site.path,
            "val": spec.make_empty(),
        }
    sizes = match.kept[value].meta.get("sizes", ())
    if len(sizes) == len(spec.shape):  # else a flag, or nothing depends on sizes
        pairs = zip(spec.shape, sizes, strict=True)
        meta["sizes"] = tuple(size if size == own else own for own, size in pairs)
    return add_input(gm, f"slot_{'_'.join(map(str, numbers))}", meta)


def add_weights(gm: fx.GraphModule, match: Match, column: int, history: int) -> fx.Node:
    """A new placeholder for the weights of a forecast."""
    with fake_mode_of(match):
        value = torch.empty(history, device=match.site.kept[0].device)
    meta = {"weights": column, "site_path": match.site.path, "val": value}
    return add_input(gm, f"weights_{column}", meta)


def fake_mode_of(match: Match) -> Any:
    """What the fake tensors of a captured graph belong to."""
    mode = getattr(tensor_value(match.kept[0]), "fake_mode", None)
    assert mode is not None, "captured graphs carry fake tensors"
    return mode
