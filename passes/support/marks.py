"""Marks that tracing leaves where a repeated block begins, ends, or would run again.

A mark is an operator with no work: it gives new tensors of the layouts that it is shown, so
that what is traced behind it does not depend on what is before it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN, END, AGAIN = "begin", "end", "again"

torch.library.define(
    "dqar_fx::mark",
    "(Tensor[] given, Tensor[] like, str role, int number, str path) -> Tensor[]",
)


def new_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and offset, in a storage of its own."""
    offset = tensor.storage_offset()
    if type(offset) is int and offset == 0:  # in one operator, as most are
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    size = offset + 1 + sum((size - 1) * stride for size, stride in pairs if size)
    storage = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
    return storage.as_strided(tensor.shape, tensor.stride(), offset)


torch.library.register_fake(
    "dqar_fx::mark", lambda given, like, *_: [new_like(each) for each in like]
)
MARK = torch.ops.dqar_fx.mark.default


def mark(
    given: list[torch.Tensor], like: list[torch.Tensor], role: str, number: int, path: str
) -> list[torch.Tensor]:
    """Put a mark into the graph; its results.

    Where it was called from is not noted: it is in no graph that is looked at.
    """
    tracing = get_proxy_mode()
    if tracing is None:
        return list(MARK(given, like, role, number, path))
    tracer = tracing.tracer
    noted, tracer.record_stack_traces = tracer.record_stack_traces, False
    try:
        return list(MARK(given, like, role, number, path))
    finally:
        tracer.record_stack_traces = noted


@dataclass(frozen=True)
class Mark:
    """What a mark says.

    Attributes:
        given: Values that it reads.
        role: `BEGIN`, `END` or `AGAIN`.
        number: The number of the first call that it belongs to.
        path: The path of the block that is called.
    """

    given: list[fx.Node]
    role: str
    number: int
    path: str

    @classmethod
    def of(cls, node: fx.Node) -> Mark:
        """Read a node."""
        given, _, role, number, path = cast("Any", node.args)
        return cls(given, role, number, path)


def find_marks(graph: fx.Graph) -> list[fx.Node]:
    """The marks of a graph, in order."""
    return list(graph.find_nodes(op="call_function", target=MARK))


def is_item_of_mark(node: fx.Node) -> bool:
    """Whether a node picks one result of a mark."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and source.target is MARK


def items_of(mark: fx.Node, values: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """What stands for each result of a mark that is read."""
    return {user: values[user.args[1]] for user in mark.users if is_item_of_mark(user)}  # type: ignore[index]  # an int
