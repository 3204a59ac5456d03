"""A graph as text of which two compare: no line differs but what does something else.

Left out is what `torch.fx.GraphModule.print_readable` tells besides: comments, the frees
``;  x = None``, the class header. Values have the names of their counterparts in the other
graph, so that numbering is no difference either.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from .flatten import Given, Hidden, Ref

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .flatten import Entry

CONTEXT = 2
"""Lines that are shown around each change."""
INDENT = "    "


def name_entries(
    entries: Sequence[Entry], pairs: Mapping[Entry, Entry], taken: Mapping[Entry, str]
) -> dict[Entry, str]:
    """A name for each entry: its counterpart's, else its node's with a number if need be."""
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


def write_line(entry: Entry, names: Mapping[Entry, str]) -> str:
    """One entry: ``linear_3: float32[2, 36, 60] = aten.linear.default(x, weight)``."""
    operands = write_operands(entry, names)
    if entry.kind == "output":
        return f"return ({', '.join(operands)})"
    call = f"{entry.operator}({', '.join(operands)})" if operands else entry.operator
    type_ = f": {entry.type}" if entry.type else ""
    return f"{names[entry]}{type_} = {call}"


def indented(entry: Entry, line: str) -> str:
    """The line as it stands within stages, regions and guards."""
    return INDENT * len(entry.within) + line


def diff_lines(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Unified diff of two texts; empty where they are equal."""
    return tuple(
        difflib.unified_diff(before, after, "before", "after", lineterm="", n=CONTEXT)
    )


def write_operands(entry: Entry, names: Mapping[Entry, str]) -> list[str]:
    """Positional operands, then those by name."""
    if entry.kind not in ("operator", "write"):
        return [write(each, names) for each in entry.args if not isinstance(each, Hidden)]
    positional, *rest = entry.args
    named = rest[0].items() if rest else ()
    return [
        *(write(each, names) for each in positional),
        *(f"{name}={write(each, names)}" for name, each in named),
    ]


def write(value: Any, names: Mapping[Entry, str]) -> str:
    """An operand in words."""
    if isinstance(value, Ref):
        return names[value.entry] + "".join(f"[{index}]" for index in value.index)
    if isinstance(value, Given):
        return value.text
    if isinstance(value, list | tuple):
        return f"[{', '.join(write(each, names) for each in value)}]"
    return repr(value)
