"""Let a graph compute any sizes: numbers that depend on them are read off its inputs.

Legal because each such number knows its expression, as each dimension of an input does:

    %view : f32[4, 36, 3, 20] = view(%x, [4, -1, 3, 20])      ; captured; 4 is the batch
 -> %size = sym_size.int(%x, 0)
    %view : f32[4, 36, 3, 20] = view(%x, [%size, -1, 3, 20])

A number that no input tells is read off one more, before all others: an empty tensor of that
size. One that may be negative, or is no whole one, is computed from what it depends on.

Leaves alone: graphs in which no number depends on sizes.

Source: shapes as values of a graph, as `torch.export` and `torch.compile` have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from .support.graphs import fake_mode_of
from .support.sizes import Size, map_sizes, reads_sizes

if TYPE_CHECKING:
    from .support.sizes import SizeRatio, Sizes

aten = torch.ops.aten


def free_sizes(gm: fx.GraphModule, captured: Sizes) -> int:
    """Free a graph of its sizes; the number of nodes whose arguments are read off inputs.

    Inputs that are added have their expression as ``meta["size"]``.

    Args:
        gm: The graph.
        captured: The value of each symbol where the graph was captured.
    """
    graph = gm.graph
    found = [node for node in graph.nodes if reads_sizes(node)]
    if found:
        reader = SizeReader(graph, captured)
        for node in found:
            node.args, node.kwargs = map_sizes((node.args, node.kwargs), reader.node)
        graph.eliminate_dead_code()
    return len(found)


def is_size(expr: sympy.Expr) -> bool:
    """Whether an expression is a positive whole number whatever the sizes of inputs are."""
    sizes = {each: sympy.Dummy(integer=True, positive=True) for each in expr.free_symbols}
    found = expr.xreplace(sizes)
    return bool(found.is_integer and found.is_positive)


class TraceableAnalysis(PythonReferenceAnalysis):
    """Expressions as nodes, quotients too."""

    @staticmethod
    def int_truediv(a: Any, b: Any) -> Any:
        """The quotient of whole numbers."""
        return a / b

    truediv = int_truediv


class SizeReader:
    """Nodes of a graph that give sizes."""

    def __init__(self, graph: fx.Graph, captured: Sizes) -> None:
        self._graph, self._captured = graph, captured
        self._inputs = graph.find_nodes(op="placeholder")
        self._first = next(node for node in graph.nodes if node.op != "placeholder")
        self._mode = fake_mode_of(graph)
        self._added: fx.Node | None = None
        self._told: dict[sympy.Expr, tuple[fx.Node, int]] = {}
        for node in self._inputs:
            for dim, size in enumerate(node.meta.get("sizes", ())):
                if not isinstance(size, int) or type(size) is not int:
                    self._told.setdefault(size.expr, (node, dim))
        self._nodes: dict[sympy.Expr, fx.Node] = {}
        self._tracer = fx.proxy.GraphAppendingTracer(graph)

    def node(self, size: Size | SizeRatio) -> fx.Node:
        """The node that gives a number."""
        expr = size.expr
        if expr not in self._nodes:
            self._nodes[expr] = self._make(expr, size)
            self._nodes[expr].meta["val"] = type(size).__base__(size)  # type: ignore[misc]  # a number
        return self._nodes[expr]

    def _make(self, expr: sympy.Expr, size: Any) -> fx.Node:
        if expr in self._told:
            return self._size_of(*self._told[expr])
        if expr.is_Symbol or (not expr.free_symbols <= self._told.keys() and is_size(expr)):
            return self._size_of(self._add_input(size), 0)
        known = {
            symbol: fx.Proxy(self._read(symbol), self._tracer) for symbol in expr.free_symbols
        }
        with self._graph.inserting_before(self._first):
            made_by: Any = sympy_interp(TraceableAnalysis, known, expr)
        node: fx.Node = made_by.node
        return node

    def _size_of(self, source: fx.Node, dim: int) -> fx.Node:
        with self._graph.inserting_before(self._first):
            return self._graph.call_function(aten.sym_size.int, (source, dim))

    def _add_input(self, size: Any) -> fx.Node:
        """A new input, which is empty, behind those that were added before."""
        behind = self._added.next if self._added else next(iter(self._graph.nodes))
        with self._graph.inserting_before(behind):
            self._added = made = self._graph.placeholder("size")
        made.target = made.name  # which is no other's
        with self._mode:
            value = torch.empty(size, 0)
        made.meta = {"size": size, "sizes": (size, 0), "val": value}
        return made

    def _read(self, symbol: sympy.Symbol) -> fx.Node:
        return self.node(Size(self._captured[symbol], symbol))
