"""A graph as text of which two compare: no line differs but what does something else.

Left out is what `torch.fx.GraphModule.print_readable` tells besides: comments, the frees
``;  x = None``, the class header. Values have the names of their counterparts in the other
graph, so that numbering is no difference either.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from .flatten import EntryValue, StaticOperand, UnprintedText

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .flatten import GraphEntry

CONTEXT = 2
"""Lines around each change that are shown."""
INDENT = "    "


def name_entries(
    entries: Sequence[GraphEntry],
    pairs: Mapping[GraphEntry, GraphEntry],
    taken: Mapping[GraphEntry, str],
) -> dict[GraphEntry, str]:
    """Name each entry as its counterpart, else as its node, with a number if that is taken."""
    names = {entry: taken[pairs[entry]] for entry in entries if entry in pairs}
    used = {*taken.values(), *names.values()}
    for entry in entries:
        if entry in names:
            continue
        stem = name = "slot" if entry.kind == "read" else entry.node.name
        number = 0
        while name in used:
            number += 1
            name = f"{stem}_{number}"
        names[entry] = name
        used.add(name)
    return names


def write_line(entry: GraphEntry, names: Mapping[GraphEntry, str]) -> str:
    """Write one entry: ``linear_3: float32[2, 36, 60] = aten.linear.default(x, weight)``."""
    operands = write_operands(entry, names)
    if entry.kind == "output":
        return f"return ({', '.join(operands)})"
    call = f"{entry.operator}({', '.join(operands)})" if operands else entry.operator
    type_ = f": {entry.type}" if entry.type else ""
    return f"{names[entry]}{type_} = {call}"


def indented(entry: GraphEntry, line: str) -> str:
    """Indent a line by the stages, regions and guards around it."""
    return INDENT * len(entry.within) + line


def diff_lines(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Make the unified diff of two texts; it is empty where they are equal."""
    return tuple(
        difflib.unified_diff(before, after, "before", "after", lineterm="", n=CONTEXT)
    )


def write_operands(entry: GraphEntry, names: Mapping[GraphEntry, str]) -> list[str]:
    """Write positional operands, then those by name."""
    if entry.kind not in ("operator", "write"):
        return [
            write_operand(each, names)
            for each in entry.args
            if not isinstance(each, UnprintedText)
        ]
    positional, *rest = entry.args
    named = rest[0].items() if rest else ()
    return [
        *(write_operand(each, names) for each in positional),
        *(f"{name}={write_operand(each, names)}" for name, each in named),
    ]


def write_operand(value: Any, names: Mapping[GraphEntry, str]) -> str:
    """Write an operand: the name of its entry, or its own."""
    if isinstance(value, EntryValue):
        return names[value.entry] + "".join(f"[{index}]" for index in value.index)
    if isinstance(value, StaticOperand):
        return value.text
    if isinstance(value, list | tuple):
        return f"[{', '.join(write_operand(each, names) for each in value)}]"
    return repr(value)
