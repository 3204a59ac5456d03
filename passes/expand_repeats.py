"""Copy the nodes of a block that was traced once for each block that is equal to it.

While a model is traced, the first block of a kind runs between two marks. A block that is
equal to it does not run: a mark stands in for it, with results of the same layout. This pass
puts the nodes between the marks in its place, with its own inputs, parameters and module
paths, and takes all marks out.

Legal because equal blocks differ in their parameters alone and are called alike, which
`dqar_fx.capture` sees to: what one computes is what the other computes with its own:

    %x_ = mark([%x], [%x], "begin", 0)            ; %x is f32[2, 36, 60]
    %y : f32[2, 36, 60] = linear(%x_[0], blocks.0.weight)
    %y_ = mark([%y], [%y], "end", 0)
    %z = mark([%y_[0]], [%y_[0]], "again", 0, "blocks.1")
 -> %y : f32[2, 36, 60] = linear(%x, blocks.0.weight)
    %z : f32[2, 36, 60] = linear(%y, blocks.1.weight)

Source lines of copies are those of the first block. No operator of a block may write to a
tensor.

Leaves alone: graphs without marks. `CannotExpand` is raised, and nothing is changed, where a
value gets in or out of a block past its marks, where a block has graphs of its own or is in
one, where an equal block is given tensors of other layouts, and where a part of it is called
from elsewhere.

Source: loops are traced once by ``jax.lax.scan`` over stacked layers; here layers stay apart,
so that the graph is the one without marks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import fx

from .support.editing import copy_node
from .support.graphs import describe_value
from .support.marks import AGAIN, BEGIN, END, MARK, Mark, find_marks, is_item_of_mark, items_of
from .support.module_paths import find_enclosing, module_path, module_stack, rename_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Stack = dict[str, tuple[str, str]]
"""Modules from the root down: path and class, by a key for each call."""
TRAILING_NUMBER = re.compile(r"_\d+$")


class CannotExpand(Exception):
    """A graph with marks is not certain to give the one without."""


def expand_repeats(gm: fx.GraphModule) -> int:
    """Put the first block's nodes where marks stand in for equal ones; the number of marks.

    Raises:
        CannotExpand: The graph is not certain to be that of all blocks traced.
    """
    inner = (each for each in gm.modules() if each is not gm)
    if any(isinstance(each, fx.GraphModule) and find_marks(each.graph) for each in inner):
        raise CannotExpand("a block is called in a graph inside of the graph")
    marks = find_marks(gm.graph)
    if not marks:
        return 0
    expansion = Expansion(find_regions(gm.graph, marks), stood_in(marks))
    expansion.emit(list(gm.graph.nodes), expansion.copies, ())
    gm.graph = expansion.graph
    return len(marks)


def stood_in(marks: Iterable[fx.Node]) -> frozenset[str]:
    """Paths of the blocks that marks stand in for."""
    return frozenset(mark.path for mark in map(Mark.of, marks) if mark.role == AGAIN)


@dataclass(frozen=True)
class Region:
    """What is between two marks.

    Attributes:
        begin: The first mark.
        body: Nodes behind it, marks of inner regions included.
        end: The last mark.
    """

    begin: fx.Node
    body: Sequence[fx.Node]
    end: fx.Node

    @property
    def path(self) -> str:
        """The path of the block."""
        return Mark.of(self.begin).path

    def refuse_other_layouts(self, mark: Mark) -> None:
        """Raise for an equal block that is given tensors of other layouts."""
        for own, other in zip(Mark.of(self.begin).given, mark.given, strict=True):
            if layout_of(own) != layout_of(other):
                raise CannotExpand(f"{mark.path} is given %{other.name} in another layout")

    def refuse_leaks(self) -> None:
        """Raise for a graph in the block, and for a value that is read past the mark."""
        inside = {*self.body, self.end}
        for node in self.body:
            if node.op != "call_function":
                raise CannotExpand(f"{self.path} has a graph of its own, %{node.name}")
            if not inside.issuperset(node.users):
                raise CannotExpand(f"%{node.name} of {self.path} is read past its result")


def layout_of(node: fx.Node) -> tuple[str, int]:
    """The layout of a tensor and where it begins in its memory."""
    value = node.meta["val"]
    return describe_value(value), value.storage_offset()


def find_regions(graph: fx.Graph, marks: Sequence[fx.Node]) -> dict[int, Region]:
    """The regions of a graph, by number.

    Raises:
        CannotExpand: A mark lacks its other half, or a value leaves a region past it.
    """
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    halves = {(mark.role, mark.number): node for node in marks for mark in [Mark.of(node)]}
    regions = {}
    for number in {mark.number for mark in map(Mark.of, marks)}:
        if (BEGIN, number) not in halves or (END, number) not in halves:
            raise CannotExpand(f"a mark of call {number} is missing")
        begin, end = halves[BEGIN, number], halves[END, number]
        regions[number] = Region(begin, nodes[place[begin] + 1 : place[end]], end)
        regions[number].refuse_leaks()
    return regions


@dataclass(frozen=True)
class EqualModule:
    """A block in whose name the region of an equal one is written again.

    Attributes:
        first: Path of the block that the region is of.
        path: Of the block that is equal to it.
        above: Record of the modules around that block, from the root down.
        known: Records in the other block, by the keys of calls in the first one's.
    """

    first: str
    path: str
    above: Stack
    known: dict[tuple[str, ...], Stack] = field(default_factory=dict, compare=False)

    def stack(self, stack: Stack) -> Stack:
        """A record of modules in the first block, as one in the other."""
        calls = tuple(stack)
        if calls not in self.known:
            self.known[calls] = self.rename(stack)
        return self.known[calls]

    def rename(self, stack: Stack) -> Stack:
        """A record in the first block with the other's names."""
        own, inside = dict(self.above), False
        for key, (path, kind) in stack.items():
            inside = inside or path == self.first
            if inside:
                renamed = rename_path(path, self.first, self.path)
                own[key.replace(path, renamed, 1)] = (renamed, kind)
        return own


@dataclass(frozen=True)
class Expansion:
    """A graph that is written from one with marks.

    Attributes:
        regions: The regions between marks, by number of the first call.
        stood_in: Paths of blocks that marks stand in for.
        graph: What is written.
        copies: Its nodes, by those of the given graph outside of regions that are repeated.
        parameters: Its parameters, buffers and constants, by path.
    """

    regions: dict[int, Region]
    stood_in: frozenset[str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)
    parameters: dict[str, fx.Node] = field(default_factory=dict)

    def emit(
        self,
        nodes: Iterable[fx.Node],
        copies: dict[fx.Node, fx.Node],
        modules: Sequence[EqualModule],
    ) -> None:
        """Write nodes in the name of these blocks, innermost first, and note the copies."""
        for node in nodes:
            if node.target is MARK:
                self.emit_mark(node, copies, modules)
            elif not is_item_of_mark(node):
                self.emit_copy(node, copies, modules)

    def emit_mark(
        self, node: fx.Node, copies: dict[fx.Node, fx.Node], modules: Sequence[EqualModule]
    ) -> None:
        """Write what a mark stands for: nothing, or a region; let its items be the values."""
        mark = Mark.of(node)
        values = [self.find(source, copies, modules) for source in mark.given]
        if mark.role == AGAIN:
            region = self.regions[mark.number]
            region.refuse_other_layouts(mark)
            inner = items_of(region.begin, values)
            within = [EqualModule(region.path, mark.path, above(node, mark.path)), *modules]
            self.emit(region.body, inner, within)
            values = [self.find(each, inner, within) for each in Mark.of(region.end).given]
            for value in values:  # tracing tells values apart by what stands for them
                value.meta["val"] = value.meta["val"].detach()
        copies.update(items_of(node, values))

    def emit_copy(
        self, node: fx.Node, copies: dict[fx.Node, fx.Node], modules: Sequence[EqualModule]
    ) -> None:
        """Write one node."""
        is_again = bool(modules)  # then it was looked at when it was written first
        if not is_again and any(
            find_enclosing(path, self.stood_in) for _, path in module_stack(node)
        ):
            raise CannotExpand(f"{module_path(node)} is called apart from its block")
        # numbers anew: names must not tell where there was a mark
        name = TRAILING_NUMBER.sub("", node.name) if node.op == "call_function" else node.name
        copy = copy_node(self.graph, node, lambda n: self.find(n, copies, modules), name)
        for module in modules:
            copy.meta["nn_module_stack"] = module.stack(copy.meta["nn_module_stack"])
        if node.op == "get_attr":
            self.parameters[str(node.target)] = copy
        copies[node] = copy

    def find(
        self, node: fx.Node, copies: dict[fx.Node, fx.Node], modules: Sequence[EqualModule]
    ) -> fx.Node:
        """What was written of a node; of a parameter, the equal block's."""
        if node in copies:
            return copies[node]
        path = str(node.target)
        for module in modules:
            path = rename_path(path, module.first, module.path)
        if node.op != "get_attr" or path not in self.parameters:
            raise CannotExpand(f"%{node.name} is read in a block and no input of it")
        return self.parameters[path]


def above(mark: fx.Node, path: str) -> Stack:
    """The record of the modules around a block that a mark stands in for."""
    stack: Stack = mark.meta["nn_module_stack"]
    names = [each for each, _ in stack.values()]
    return dict(list(stack.items())[: names.index(path)])
