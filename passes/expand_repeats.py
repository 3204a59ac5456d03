"""Repeated blocks that were traced once: copied for each twin.

Legal because twins differ in their parameters alone and are called alike (`dqar_fx.twins` and
`dqar_fx.repeats` see to that): what one computes is what the other computes with its own.
While a model is traced, the first block of a kind runs between two marks. A twin of it does
not run: a mark stands in for it, with results of the same layout. This pass puts the nodes
between the marks in its place, with the twin's inputs, parameters and module paths, and takes
all marks out::

    x_ = mark([x], "begin", 0)                    y = linear(x, blocks.0.weight)
    y = linear(x_[0], blocks.0.weight)       ->   z = linear(y, blocks.1.weight)
    y_ = mark([y], "end", 0)
    z = mark([y_[0]], "again", 0, "blocks.1")

The graph is the one that tracing all blocks gives, down to names and source lines. Where that
is not certain, `CannotExpand` is raised and nothing is changed: a block that reads a value
which is no input of it, a part of a twin that is called from elsewhere. Requires a graph in
which no operator writes to a tensor.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .graphs import copy_meta, module_stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BEGIN, END, AGAIN = "begin", "end", "again"
NUMBER = re.compile(r"_\d+$")

torch.library.define(
    "dqar_fx::mark",
    "(Tensor[] given, Tensor[] like, str role, int first, str path) -> Tensor[]",
)


@torch.library.register_fake("dqar_fx::mark")
def fake_mark(
    given: list[torch.Tensor], like: list[torch.Tensor], role: str, first: int, path: str
) -> list[torch.Tensor]:
    """New tensors of the layouts of ``like``; ``given`` only says what they come from."""
    return [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in like
    ]


MARK = torch.ops.dqar_fx.mark.default


class CannotExpand(Exception):
    """A graph with marks is not certain to give the one without."""


def mark(
    given: list[torch.Tensor], like: list[torch.Tensor], role: str, first: int, path: str
) -> list[torch.Tensor]:
    """Put a mark into the graph; its results."""
    return list(MARK(given, like, role, first, path))


def expand_repeats(gm: fx.GraphModule) -> int:
    """Put the nodes of the first block where a mark stands in for a twin.

    Returns:
        How many blocks were copied.

    Raises:
        CannotExpand: The graph is not certain to be that of all blocks traced.
    """
    marks = [node for node in gm.graph.nodes if node.target is MARK]
    if not marks:
        return 0
    expansion = Expansion.of(gm.graph, marks)
    expansion.emit(list(gm.graph.nodes), expansion.copies, ())
    gm.graph = expansion.graph
    return len(expansion.stood_in)


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
        """Of the block."""
        return str(self.begin.args[4])


@dataclass(frozen=True)
class Expansion:
    """A graph that is written from one with marks.

    Attributes:
        regions: By number of the first call.
        stood_in: Paths of blocks that calls stand for.
        graph: What is written.
        copies: Its nodes, by those of the given graph outside of regions that are repeated.
        parameters: Its parameters, buffers and constants, by path.
    """

    regions: dict[int, Region]
    stood_in: frozenset[str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)
    parameters: dict[str, fx.Node] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: fx.Graph, marks: Sequence[fx.Node]) -> Expansion:
        """Find the regions."""
        nodes = list(graph.nodes)
        place = {node: i for i, node in enumerate(nodes)}
        by_role = {(m.args[2], m.args[3]): m for m in marks if m.args[2] != AGAIN}
        regions = {}
        for (role, number), end in by_role.items():
            if role == END:
                begin = by_role[BEGIN, number]
                body = nodes[place[begin] + 1 : place[end]]
                regions[int(number)] = Region(begin, body, end)
        return cls(regions, frozenset(str(m.args[4]) for m in marks if m.args[2] == AGAIN))

    def emit(
        self,
        nodes: Iterable[fx.Node],
        copies: dict[fx.Node, fx.Node],
        renames: Sequence[tuple[str, str]],
    ) -> None:
        """Write nodes.

        Args:
            nodes: Of the graph with marks.
            copies: What has been written of them; more is added.
            renames: Paths and those to write in their place, innermost first.
        """
        for node in nodes:
            if node.target is MARK:
                self.emit_mark(node, copies, renames)
            elif not is_item_of_mark(node):
                self.emit_copy(node, copies, renames)

    def emit_mark(
        self,
        node: fx.Node,
        copies: dict[fx.Node, fx.Node],
        renames: Sequence[tuple[str, str]],
    ) -> None:
        """Write what a mark stands for: nothing, or a region; let its items be the values."""
        given: Any = node.args[0]
        values = [self.find(source, copies, renames) for source in given]
        if node.args[2] == AGAIN:
            region = self.regions[int(node.args[3])]  # type: ignore[arg-type]  # an int
            inner = items_of(region.begin, values)
            self.emit(region.body, inner, [(region.path, str(node.args[4])), *renames])
            returned: Any = region.end.args[0]
            values = [self.find(output, inner, renames) for output in returned]
        copies.update(items_of(node, values))

    def emit_copy(
        self,
        node: fx.Node,
        copies: dict[fx.Node, fx.Node],
        renames: Sequence[tuple[str, str]],
    ) -> None:
        """Write one node."""
        stack = node.meta.get("nn_module_stack")
        if any(is_part(path, self.stood_in) for _, path in module_stack(node)):
            raise CannotExpand(f"{module_stack(node)[-1][1]} is called apart from its block")
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda n: self.find(n, copies, renames)
        )
        # numbers anew: names must not tell where there was a mark
        name = NUMBER.sub("", node.name) if node.op == "call_function" else node.name
        copy = self.graph.create_node(node.op, node.target, args, kwargs, name)
        copy.meta = copy_meta(node)
        if stack is not None and renames:
            copy.meta["nn_module_stack"] = rename_stack(stack, renames)
        if node.op == "get_attr":
            self.parameters[str(node.target)] = copy
        copies[node] = copy

    def find(
        self,
        node: fx.Node,
        copies: dict[fx.Node, fx.Node],
        renames: Sequence[tuple[str, str]],
    ) -> fx.Node:
        """What was written of a node; of a parameter, the twin's."""
        if node in copies:
            return copies[node]
        own = self.parameters.get(rename(str(node.target), renames))
        if node.op != "get_attr" or own is None:
            raise CannotExpand(f"%{node.name} is read in a block and no input of it")
        return own


def is_item_of_mark(node: fx.Node) -> bool:
    """Whether a node picks one result of a mark."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and source.target is MARK


def items_of(mark: fx.Node, values: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """What stands for each result of a mark that is read."""
    return {user: values[user.args[1]] for user in mark.users if is_item_of_mark(user)}  # type: ignore[index]  # an int


def is_part(path: str, blocks: frozenset[str]) -> bool:
    """Whether a module is one of some blocks or inside of one."""
    names = path.split(".")
    return any(".".join(names[:n]) in blocks for n in range(1, 1 + len(names)))


def rename(path: str, renames: Iterable[tuple[str, str]]) -> str:
    """A path inside of a block, as one inside of its twin."""
    for old, new in renames:
        if path == old or path.startswith(f"{old}."):
            path = new + path[len(old) :]
    return path


def rename_stack(
    stack: dict[str, tuple[str, str]], renames: Sequence[tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """A record of modules, from the root down, with those of the twin."""
    renamed = {}
    for key, (path, kind) in stack.items():
        own = rename(path, renames)
        renamed[key.replace(path, own, 1) if path else key] = (own, kind)
    return renamed
