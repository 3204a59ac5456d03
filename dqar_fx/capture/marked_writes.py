"""Writes to tensors in a program with marks: whether all that see one go on to see it.

A mark's results are tensors of their own (`dqar_fx.passes.support.marks`). Before a program is
traced again without writes, nothing may write to memory that something past a mark shows too:
a block to what it is given, or its caller to what a block returned of what it was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.passes import CannotExpand
from dqar_fx.passes.support.graphs import tensor_value, written_inputs
from dqar_fx.passes.support.marks import BEGIN, END, MARK, Mark, find_marks
from dqar_fx.passes.support.views import find_shown

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from torch import fx


def refuse_writes_past_marks(graph: fx.Graph) -> None:
    """Raise if a write would have to be seen past a mark.

    Raises:
        CannotExpand: With what is written to, and where.
    """
    seen = memory_past_marks(graph)
    for node in graph.nodes:
        for written in written_inputs(node):
            if not seen.isdisjoint(memory_of([written])):
                raise CannotExpand(f"%{node.name} writes to what is on both sides of a mark")


def memory_past_marks(graph: fx.Graph) -> set[Hashable]:
    """Memory that tensors on both sides of a mark stand for."""
    past: set[Hashable] = set()
    inside: dict[int, set[Hashable]] = {}
    sharing: set[int] = set()
    marks = [(node, Mark.of(node)) for node in find_marks(graph)]
    for node, mark in marks:
        if mark.role == BEGIN:
            inside[mark.number] = memory_of(node.users)
            past |= inside[mark.number]
        elif mark.role == END and shows_more(mark.given, inside[mark.number]):
            sharing.add(mark.number)
    for node, mark in marks:
        if mark.number in sharing:
            past |= memory_of([*node.users, *(mark.given if mark.role != END else ())])
    return past


def shows_more(returned: Iterable[fx.Node], given: set[Hashable]) -> bool:
    """Whether a block returns memory that is not its own, or the same in two tensors."""
    known = set(given)
    for node in returned:
        memory = memory_of([node])
        if find_shown(node).op != "call_function" or not memory.isdisjoint(known):
            return True
        known |= memory
    return False


def memory_of(nodes: Iterable[fx.Node]) -> set[Hashable]:
    """The memory of some tensors, as far as fake values and operators tell."""
    found: set[Hashable] = set()
    for node in nodes:
        shown = find_shown(node)
        if shown.target is not MARK:  # of whose results each has its own
            found.add(shown)
        for value in (tensor_value(node), tensor_value(shown)):
            if value is not None:
                found.add(value.untyped_storage()._cdata)
    return found
