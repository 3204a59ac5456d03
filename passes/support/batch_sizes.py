"""Sizes that depend on the batch, written as lines, as layouts and as nodes of a graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .graphs import tensor_value
from .vocabulary import NoMatch

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten


@dataclass(frozen=True)
class LinearSize:
    """A whole number that depends on the batch size: ``times * batch + plus``."""

    times: int
    plus: int = 0

    @classmethod
    def through(
        cls, numbers: tuple[int, int], batches: tuple[int, int], node: fx.Node
    ) -> LinearSize:
        """The line through two points.

        Raises:
            NoMatch: Its slope is no whole number; at ``node``.
        """
        times, rest = divmod(numbers[0] - numbers[1], batches[0] - batches[1])
        if rest:
            raise NoMatch(
                f"{numbers[0]} and {numbers[1]} at batches of {batches[0]} and {batches[1]}: "
                "not so many per sample",
                node,
            )
        return cls(times, numbers[0] - times * batches[0])

    def at(self, batch: int) -> int:
        """The number at a batch size."""
        return self.times * batch + self.plus


@dataclass(frozen=True)
class FreeLayout:
    """Shape and strides (in elements) of a tensor at any batch size."""

    shape: tuple[LinearSize, ...]
    stride: tuple[LinearSize, ...]

    @classmethod
    def of(cls, node: fx.Node, mate: fx.Node, batches: tuple[int, int]) -> FreeLayout | None:
        """The layout of an input that is given at two batch sizes; None of what is no tensor.

        Raises:
            NoMatch: It is not linear in the batch, or no tensor of one kind.
        """
        mine, its = tensor_value(node), tensor_value(mate)
        if mine is None and its is None:
            return None
        if mine is None or its is None or batch_free_kind(mine) != batch_free_kind(its):
            raise NoMatch("another batch size has an input of another kind in its place", node)

        def through(*numbers: int) -> LinearSize:
            return LinearSize.through((numbers[0], numbers[1]), batches, node)

        # a single element may have any stride
        strides = [
            through(a, a if n == 1 else b)
            for a, b, n in zip(mine.stride(), its.stride(), its.shape, strict=True)
        ]
        return cls(tuple(map(through, mine.shape, its.shape)), tuple(strides))

    @property
    def is_free(self) -> bool:
        """Whether the shape depends on the batch size."""
        return any(size.times for size in self.shape)

    def allocate(self, like: torch.Tensor, batch: int) -> torch.Tensor:
        """A tensor of this layout at a batch size, with dtype and device of another."""
        shape, stride = (
            [line.at(batch) for line in lines] for lines in (self.shape, self.stride)
        )
        return torch.empty_strided(shape, stride, dtype=like.dtype, device=like.device)


def batch_free_kind(value: torch.Tensor) -> tuple[torch.dtype, torch.device, int]:
    """What does not depend on the batch."""
    return value.dtype, value.device, value.dim()


class SizeNodes:
    """Nodes of a graph that give sizes, worked out from the shape of one of its inputs.

    Attributes:
        num_reads: How often a node was asked for.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.num_reads = 0
        self._graph = graph
        self._first = next(node for node in graph.nodes if node.op != "placeholder")
        self._nodes: dict[LinearSize, fx.Node] = {}

    def read(self, line: LinearSize, reader: fx.Node) -> fx.Node:
        """The node that gives a size.

        Raises:
            NoMatch: No input of the graph tells the batch size; at ``reader``.
        """
        self.num_reads += 1
        batch = LinearSize(1)
        if batch not in self._nodes:
            source, dim, times = self._find_source(reader)
            size = self._call(aten.sym_size.int, source, dim)
            self._nodes[batch] = (
                size if times == 1 else self._call(operator.floordiv, size, times)
            )
        if line not in self._nodes:
            size = self._nodes[batch]
            if line.times != 1:
                size = self._call(operator.mul, size, line.times)
            if line.plus:
                size = self._call(operator.add, size, line.plus)
            self._nodes[line] = size
        return self._nodes[line]

    def _find_source(self, reader: fx.Node) -> tuple[fx.Node, int, int]:
        """An input, its dimension that grows with the batch, and its size per sample."""
        found = [
            (size.times, number, node, dim)
            for number, node in enumerate(self._graph.find_nodes(op="placeholder"))
            if node.meta.get("layout") is not None
            for dim, size in enumerate(node.meta["layout"].shape)
            if size.times > 0 and not size.plus
        ]
        if not found:
            raise NoMatch("it depends on the batch size, but no input tells that", reader)
        times, _, node, dim = min(found, key=lambda each: each[:2])
        return node, dim, times

    def _call(self, target: Callable[..., int], *args: Any) -> fx.Node:
        with self._graph.inserting_before(self._first):
            node = self._graph.call_function(target, args)
        node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
        return node
