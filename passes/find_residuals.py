"""Find blocks, and runs of consecutive blocks, that add to what they read.

A site is what a block, or a run of blocks, adds to its inputs. Nothing is edited: matches are
returned.

Legal because all that the rest of the graph reads of the blocks are these outputs, and each of
them is its difference from an input, plus that input:

    %h : f32[2, 36, 60] = add(%x, mul(%gate, %attention))
    %y : f32[2, 36, 60] = add(%h, mul(%gate_2, %feed_forward))
 -> transformer_blocks.0     block, residual, keeps %y - %x : [2, 36, 60]
    transformer_blocks.0:12  span, residual, from the input of the first to the output of the
                             last

Leaves alone: blocks whose outputs do not lead back to an input of the same shape through
additions, joins and views alone, as those that long skip connections read; random blocks. Each
is reported with its reason.

Source: He et al. 2016 (residual blocks); residuals of blocks are reused in First Block Cache,
DBCache (cache-dit) and MagCache, arXiv 2506.09045.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

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
from .support.module_paths import module_stack
from .support.module_sites import Match, dense_specs, numbered
from .support.views import is_pure_view
from .support.vocabulary import NoMatch, Site

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import fx

aten = torch.ops.aten
SPAN = re.compile(r"(?P<stack>.+)\.(?P<first>\d+):(?P<last>\d+)")
"""Path of a span, as a slice: ``transformer_blocks.1:11`` holds the blocks 1 to 10."""
ADDING = {
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.cat.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.clone.default,
    aten.contiguous.default,
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.chunk.default,
}
"""Operators that pass a residual stream on; views do, too."""


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


def find_residuals(
    gm: fx.GraphModule, spans: Sequence[str] = ()
) -> tuple[list[Match], list[NoMatch]]:
    """All blocks and runs of blocks, in execution order, and a reason for each that is none.

    Args:
        gm: The graph.
        spans: Paths of spans to find beside those of all blocks of a module list.
    """
    blocks = find_block_calls(gm)
    matches: list[Match] = []
    near_misses: list[NoMatch] = []
    for run in [*blocks, *find_spans(gm, blocks, spans)]:
        try:
            matches.append(match_residual(run))
        except NoMatch as miss:
            near_misses.append(miss)
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
    runs = [
        join_blocks(gm, f"{stack}.{first}:{first + len(members)}", members)
        for stack, grouped in groupby(blocks, key=lambda run: run.path.rpartition(".")[0])
        for members in [list(grouped)]
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


def match_residual(run: BlockRun) -> Match:
    """The site of a run.

    Raises:
        NoMatch: With the reason why what it adds cannot be kept.
    """
    inside = frozenset(run.nodes)
    outputs = tuple(node for node in run.nodes if used_by_others(node, inside))
    if not outputs:
        raise NoMatch(f"nothing outside of {run.path} reads it", run.nodes[-1])
    bases: list[fx.Node] = []
    for node in outputs:
        bases.append(find_base(node, inside, run.path, bases))
    for node in run.nodes:
        if is_random(node):
            raise NoMatch(f"{run.path} is random: reuse would freeze it", node)
    site = Site(
        index=0,
        path=run.path,
        kind=run.kind,
        variant="residual",
        kept=dense_specs(outputs),
        source=source_line(outputs[-1]),
    )
    return Match(
        site,
        operators=(),
        inputs=tuple(graph_inputs(run.nodes)),
        body=run.nodes,
        outputs=outputs,
        kept=outputs,
        bases=tuple(bases),
        is_across_blocks=run.kind == "span",
    )


def find_base(
    output: fx.Node, inside: frozenset[fx.Node], path: str, taken: Sequence[fx.Node]
) -> fx.Node:
    """The input that an output adds to: the nearest one that no other output has taken.

    Raises:
        NoMatch: There is none of the output's shape and dtype.
    """
    value, seen, front = tensor_value(output), {output}, [output]
    if value is None:
        raise NoMatch(f"output of {path} is not a tensor", output)
    while front:
        node = front.pop(0)
        for source in node.all_input_nodes if passes_on(node) else ():
            if source in seen:
                continue
            seen.add(source)
            if source in inside:
                front.append(source)
            elif source not in taken and is_like(source, output):
                return source
    raise NoMatch(
        f"{path} gives {list(value.shape)}, which no chain of additions leads back to an "
        "input of that shape: not a residual",
        output,
    )


def passes_on(node: fx.Node) -> bool:
    """Whether a node adds to a residual stream, or shows, joins or cuts it."""
    if node.target in ADDING or not isinstance(node.target, torch._ops.OpOverload):
        return True  # what is no operator picks one of several outputs
    return is_pure_view(node)


def is_like(node: fx.Node, output: fx.Node) -> bool:
    """Whether a node flows, with the shape, whatever the sizes, and the dtype of an output."""
    found, value = tensor_value(node), tensor_value(output)
    if found is None or value is None or is_static_input(node):
        return False
    return shape_of(node) == shape_of(output) and found.dtype == value.dtype
