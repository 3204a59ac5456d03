"""Let a graph compute any batch size: sizes that grow with it are read off an input.

Legal because captures of one model at two batch sizes are the same operators in the same
order; where a number differs, it is a linear function of the batch, which an input tells:

    %view : f32[4, 36, 3, 20] = view(%x, [4, -1, 3, 20])      ; %x is f32[4, 36, 60]
 -> %size = sym_size.int(%x, 0)
    %view : f32[4, 36, 3, 20] = view(%x, [%size, -1, 3, 20])

Two points do not prove a line: `fix_batch` puts a size back in, and what it gives must be the
capture at that size, node by node. Whoever shares the graph has to ask that of each size.

Leaves alone: numbers that are equal in both captures. `NoMatch` is raised where these differ
in anything else. A copy that makes its input contiguous may be missing at a batch of one,
where the input is contiguous anyway; so the graph to be freed is that of the larger batch.

Source: two captures instead of one with symbolic sizes, which sets a batch of one apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .support.batch_sizes import FreeLayout, LinearSize, SizeNodes
from .support.graphs import structure_of
from .support.vocabulary import NoMatch

if TYPE_CHECKING:
    from collections.abc import Iterator

aten = torch.ops.aten


def free_batch(gm: fx.GraphModule, other: fx.GraphModule, batches: tuple[int, int]) -> int:
    """Free a graph of its batch size, given the same graph at another; the numbers freed.

    Inputs get a `FreeLayout` as their ``meta["layout"]``.

    Args:
        gm: The graph at ``batches[0]``, the larger one.
        other: The graph at ``batches[1]``.
        batches: The two sizes.

    Raises:
        NoMatch: The graphs differ in more than whole numbers that are linear in the batch, or
            no input tells the batch size. The graph may then be rewritten in part.
    """
    mates = pair_nodes(gm, other)
    for node in gm.graph.find_nodes(op="placeholder"):
        node.meta["layout"] = FreeLayout.of(node, mates[node], batches)
    sizes = SizeNodes(gm.graph)
    for node, mate in mates.items():
        if node.op != "placeholder" and is_same(gm, node, other, mate):
            freeing = BatchRemover(node, mates, batches, sizes)
            node.args = freeing.free(node.args, mate.args)
            node.kwargs = freeing.free(node.kwargs, mate.kwargs)
    return sizes.num_reads


def pair_nodes(gm: fx.GraphModule, other: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """The node of ``other`` that gives the value of each node.

    Raises:
        NoMatch: Two nodes are not the same operator.
    """
    mates: dict[fx.Node, fx.Node] = {}
    theirs: Iterator[fx.Node] = iter(other.graph.nodes)
    mate = next(theirs)
    for node in gm.graph.nodes:
        if is_same(gm, node, other, mate):
            mates[node], mate = mate, next(theirs, mate)
        elif node.target is aten.contiguous.default:
            mates[node] = mates[node.all_input_nodes[0]]
        else:
            raise NoMatch(f"at another batch size {mate.target} stands in its place", node)
    return mates


def is_same(gm: fx.GraphModule, node: fx.Node, other: fx.GraphModule, mate: fx.Node) -> bool:
    """Whether two nodes are the same operator, or own equal graphs."""
    if node.op in ("get_attr", "call_module") and node.op == mate.op:
        owned: Any = gm.get_submodule(str(node.target)), other.get_submodule(str(mate.target))
        return structure_of(owned[0]) == structure_of(owned[1])
    is_input = node.op == "placeholder"
    return node.op == mate.op and (is_input or node.target == mate.target)


@dataclass(frozen=True)
class BatchRemover:
    """Rewrites the arguments of one node.

    Attributes:
        node: The node.
        mates: The node at the other batch size that gives the value of each node.
        batches: Both sizes.
        sizes: The nodes that give sizes.
    """

    node: fx.Node
    mates: dict[fx.Node, fx.Node]
    batches: tuple[int, int]
    sizes: SizeNodes

    def free(self, mine: Any, its: Any) -> Any:
        """An argument without what depends on the batch.

        Raises:
            NoMatch: It differs in something else.
        """
        if isinstance(mine, dict) and isinstance(its, dict) and mine.keys() == its.keys():
            return {key: self.free(value, its[key]) for key, value in mine.items()}
        if isinstance(mine, (list, tuple)) and isinstance(its, (list, tuple)):
            if len(mine) == len(its):
                made = [self.free(a, b) for a, b in zip(mine, its, strict=True)]
                return tuple(made) if isinstance(mine, tuple) else made
        elif type(mine) is int and type(its) is int:
            line = LinearSize.through((mine, its), self.batches, self.node)
            return self.sizes.read(line, self.node) if line.times else mine
        elif isinstance(mine, fx.Node):
            if self.mates[mine] is its:
                return mine
        elif mine == its or (is_nan(mine) and is_nan(its)):
            return mine
        raise NoMatch(f"at another batch size it has {its} in place of {mine}", self.node)


def is_nan(value: object) -> bool:
    """Whether a value is no number, and a float."""
    return isinstance(value, float) and math.isnan(value)
