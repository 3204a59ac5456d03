"""Find blocks, and runs of consecutive blocks, that add to what they read.

A site is what a block, or a run of blocks, adds to its inputs. Where a block gives something
else beside (VACE's hints), that is kept as it is. Nothing is edited: matches are returned.

Legal because all that the rest of the graph reads of the blocks are these outputs, and each of
them is its difference from an input, plus that input. The stream may be cast on its way, or
be a part of a tensor; the difference has the dtype of the output, and so has the sum:

    %h : f32[2, 36, 60] = add(%x, mul(%gate, %attention))
    %y : f32[2, 36, 60] = add(%h, mul(%gate_2, %feed_forward))
 -> transformer_blocks.0     block, residual, keeps %y - %x : [2, 36, 60]
    transformer_blocks.0:12  span, residual, from the input of the first to the output of the
                             last

A part of the model that is given by its ends, as the levels of a UNet are, is a span as well.
Its output has the shape of no input of it, and is kept as it is:

    down_blocks.1:up_blocks.3  span, whole, what is below the outermost of four levels

Leaves alone: blocks whose outputs do not lead back to an input of the same shape through
additions, joins, casts and views alone; parts whose ends skip connections cross; what is
random. Each is reported with its reason.

Source: He et al. 2016 (residual blocks); residuals of blocks are reused in First Block Cache,
DBCache (cache-dit) and MagCache, arXiv 2506.09045; deep levels of UNets in DeepCache, arXiv
2312.00858.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import fx

from .support.blocks import find_blocks
from .support.graphs import (
    graph_inputs,
    is_computing,
    is_random,
    is_static_input,
    shape_of,
    source_line,
    tensor_value,
    used_by_others,
)
from .support.module_paths import is_inside, module_path, module_stack
from .support.module_sites import Match, dense_specs, numbered
from .support.module_slices import SLICE, find_levels, find_slice
from .support.views import is_pure_view
from .support.vocabulary import NoMatch, Site

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    Place = tuple[str, str, str]

aten = torch.ops.aten
SPAN = re.compile(r"(?P<stack>.+)\.(?P<first>\d+):(?P<last>\d+)")
"""Path of a span, as a slice: ``transformer_blocks.1:11`` holds the blocks 1 to 10."""
FIRST, ALL = (0,), None
STREAMS: dict[object, tuple[int, ...] | None] = {
    aten.add.Tensor: ALL,
    aten.sub.Tensor: FIRST,
    aten.addcmul.default: FIRST,
    aten.cat.default: ALL,
    aten.slice_scatter.default: ALL,
    aten.select_scatter.default: ALL,
    aten.copy.default: (1,),
    aten._to_copy.default: FIRST,
    aten.to.dtype: FIRST,
    aten.to.dtype_layout: FIRST,
    aten.clone.default: FIRST,
    aten.contiguous.default: FIRST,
    aten.split_with_sizes.default: FIRST,
    aten.split.Tensor: FIRST,
    aten.chunk.default: FIRST,
}
"""Operators that pass a residual stream on, and which of their arguments it is in; views do,
too."""


@dataclass(frozen=True)
class BlockRun:
    """Consecutive nodes of one block, or of several.

    Attributes:
        path: ``transformer_blocks.3``, ``transformer_blocks.0:12``; a block called twice has
            a second path that ends in ``@1``.
        kind: ``"block"`` or ``"span"``.
        nodes: All computing nodes from the first to the last.
    """

    path: str
    kind: str
    nodes: tuple[fx.Node, ...]

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """Its nodes that others read."""
        inside = frozenset(self.nodes)
        return tuple(node for node in self.nodes if used_by_others(node, inside))


def find_residuals(
    gm: fx.GraphModule, spans: Sequence[str] = ()
) -> tuple[list[Match], list[NoMatch]]:
    """All blocks and runs of blocks, in execution order, and a reason for each that is none.

    Args:
        gm: The graph.
        spans: Paths of spans to find beside those of all blocks of a module list and of the
            levels of a UNet.
    """
    blocks = find_block_calls(gm)
    beside = find_outputs_beside(blocks)
    matches: list[Match] = []
    near_misses: list[NoMatch] = []
    for run in [*blocks, *find_spans(gm, blocks, spans)]:
        try:
            matches.append(match_residual(run, beside))
        except NoMatch as miss:
            near_misses.append(NoMatch(miss.reason, miss.node, run.kind))
    nodes = [node for node in gm.graph.nodes if is_computing(node)]
    asked = filter(SLICE.fullmatch, spans)
    for path in dict.fromkeys([*find_levels(nodes), *asked]):
        try:
            run = BlockRun(path, "span", find_slice(nodes, path))
            matches.append(make_match(run, "whole", (None,) * len(run.outputs)))
        except NoMatch as miss:
            near_misses.append(NoMatch(miss.reason, miss.node, "span"))
    return numbered(matches), near_misses


def find_block_calls(gm: fx.GraphModule) -> list[BlockRun]:
    """Each call of a block, in order."""
    blocks = frozenset(find_blocks(gm.graph.nodes))
    calls: dict[tuple[str, str], list[fx.Node]] = {}
    for node in gm.graph.nodes:
        for key, path in module_stack(node):
            if path in blocks and is_computing(node):
                calls.setdefault((key, path), []).append(node)
    runs = []
    for (key, path), nodes in calls.items():
        number = key.rsplit("@", 1)[1:]
        runs.append(BlockRun("@".join([path, *number]), "block", tuple(nodes)))
    return runs


def find_spans(
    gm: fx.GraphModule, blocks: Sequence[BlockRun], paths: Iterable[str]
) -> list[BlockRun]:
    """Runs of blocks: of all blocks of each module list, and those asked for by path."""
    lists: dict[str, list[BlockRun]] = {}
    for run in blocks:
        lists.setdefault(run.path.rpartition(".")[0], []).append(run)
    runs = [
        join_blocks(gm, f"{stack}.{first}:{first + len(members)}", members)
        for stack, members in lists.items()
        for first in [int(members[0].path.rpartition(".")[2].partition("@")[0] or 0)]
        if len(members) > 1
    ]
    known = {run.path for run in runs}
    for path in paths:
        asked = SPAN.fullmatch(path)
        if asked is None or path in known:
            continue
        numbers = range(int(asked["first"]), int(asked["last"]))
        wanted = {f"{asked['stack']}.{number}" for number in numbers}
        members = [run for run in blocks if run.path in wanted]
        if wanted and len(members) == len(wanted):
            runs.append(join_blocks(gm, path, members))
    return runs


def join_blocks(gm: fx.GraphModule, path: str, blocks: Sequence[BlockRun]) -> BlockRun:
    """All nodes from the first of several blocks to the last."""
    first, last = blocks[0].nodes[0], blocks[-1].nodes[-1]
    nodes = list(gm.graph.nodes)
    between = nodes[nodes.index(first) : nodes.index(last) + 1]
    return BlockRun(path, "span", tuple(node for node in between if is_computing(node)))


def find_outputs_beside(blocks: Iterable[BlockRun]) -> frozenset[Place]:
    """Where blocks that add to their inputs give something else beside."""
    return frozenset(
        place_in_block(node, run)
        for run in blocks
        for pairs in [list(zip(run.outputs, find_bases(run), strict=True))]
        if any(base is not None for _, base in pairs)
        for node, base in pairs
        if base is None
    )


def place_in_block(node: fx.Node, run: BlockRun) -> Place:
    """What is equal for nodes in the same place of two blocks of a list."""
    stack, path = run.path.rpartition(".")[0], module_path(node)
    inner = path[len(stack) + 1 :].partition(".")[2] if is_inside(path, stack) else path
    return stack, inner, str(node.target)


def match_residual(run: BlockRun, beside: Collection[Place]) -> Match:
    """The site of a run.

    Args:
        run: The run.
        beside: Where an output may be that adds to no input: it is kept as it is.

    Raises:
        NoMatch: With the reason why what it adds cannot be kept.
    """
    outputs, bases = run.outputs, find_bases(run)
    if not outputs:
        raise NoMatch(f"nothing outside of {run.path} reads it", run.nodes[-1])
    for node, base in zip(outputs, bases, strict=True):
        if tensor_value(node) is None:
            raise NoMatch(f"output of {run.path} is not a tensor", node)
        if base is None and place_in_block(node, run) not in beside:
            raise NoMatch(
                f"{run.path} gives {list(node.meta['val'].shape)}, which no chain of "
                "additions leads back to an input of that shape: not a residual",
                node,
            )
    return make_match(run, "residual", bases)


def make_match(run: BlockRun, variant: str, bases: tuple[fx.Node | None, ...]) -> Match:
    """The site of a run of which is known what its outputs add to.

    Raises:
        NoMatch: It is random.
    """
    for node in run.nodes:
        if is_random(node):
            raise NoMatch(f"{run.path} is random: reuse would freeze it", node)
    site = Site(
        index=0,
        path=run.path,
        kind=run.kind,
        variant=variant,
        kept=dense_specs(run.outputs),
        source=source_line(run.outputs[-1]),
    )
    return Match(
        site,
        operators=(),
        inputs=tuple(graph_inputs(run.nodes)),
        body=run.nodes,
        outputs=run.outputs,
        kept=run.outputs,
        bases=bases,
        is_across_blocks=run.kind == "span",
    )


def find_bases(run: BlockRun) -> tuple[fx.Node | None, ...]:
    """The input that each output of a run adds to, or None."""
    inside, bases = frozenset(run.nodes), list[fx.Node | None]()
    for node in run.outputs:
        bases.append(find_base_maybe(node, inside, bases))
    return tuple(bases)


def find_base_maybe(
    output: fx.Node, inside: frozenset[fx.Node], taken: Sequence[fx.Node | None]
) -> fx.Node | None:
    """The input that an output adds to: of several the nearest that no other one has taken."""
    seen, front, found = {output}, [output], list[fx.Node]()
    while front:
        for source in stream_sources(front.pop(0)):
            if source in seen:
                continue
            seen.add(source)
            if source in inside:
                front.append(source)
            elif is_base(source, output):
                found.append(source)
    free = [node for node in found if node not in taken]
    return next(iter([*free, *found]), None)


def stream_sources(node: fx.Node) -> list[fx.Node]:
    """The sources of a node whose values it adds, casts, shows, joins or cuts."""
    is_choice = not isinstance(node.target, torch._ops.OpOverload)  # of one of many outputs
    if is_choice or is_pure_view(node):
        return node.all_input_nodes
    places = STREAMS.get(node.target, ())
    if places is ALL:
        return node.all_input_nodes
    return [arg for arg in map(node.args.__getitem__, places) if isinstance(arg, fx.Node)]


def is_base(node: fx.Node, output: fx.Node) -> bool:
    """Whether a node flows, with an output's shape; its dtype may be another float."""
    base, value = tensor_value(node), tensor_value(output)
    if base is None or value is None or is_static_input(node):
        return False
    is_alike = base.dtype == value.dtype or (
        base.is_floating_point() and value.is_floating_point()
    )
    return is_alike and shape_of(node) == shape_of(output)  # whatever the sizes
