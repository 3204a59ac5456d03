"""Two graphs of a block side by side, as lines that a page draws."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from dqar_fx.inspect.flatten import Ref, map_values

from .facts import describe_amounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.inspect.flatten import Entry

    from .blocks import BlockDiff

    Line = dict[str, Any]

SLOTS = ("read", "write")
"""Kinds of entries that touch slots."""
USUAL = (("aten.", ""), (".default(", "("))
"""What the names of operators have in common, and a page leaves out."""


def draw(diff: BlockDiff) -> list[Line]:
    """The lines of a block: each an entry of one graph or of both.

    Returns:
        Per line ``s``: ``=`` in both, ``~`` in both and rewired, ``-`` or ``+`` in one; ``k``:
        ``read`` or ``write`` of a slot; ``b`` and ``a``: its text before and after (``b``
        alone where they are equal); ``i``: the numbers of the lines that it reads after, or
        before where it is gone; ``m``: the module that made it.
    """
    compared = diff.comparison
    pairs = list(align(compared.before.entries, compared.after.entries, compared.names))
    place = {entry: number for number, pair in enumerate(pairs) for entry in pair if entry}
    return [draw_line(diff, place, *pair) for pair in pairs]


def align(
    before: list[Entry], after: list[Entry], names: dict[Entry, str]
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Counterparts, which have one name, beside each other; others before them."""
    old, new = ([f"{names[e]} {e.kind}" for e in each] for each in (before, after))
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(before[i:i_end], after[j:j_end], strict=True)
            continue
        yield from ((entry, None) for entry in before[i:i_end])
        yield from ((None, entry) for entry in after[j:j_end])


def draw_line(
    diff: BlockDiff, place: dict[Entry, int], before: Entry | None, after: Entry | None
) -> Line:
    """One line; what is empty is left out."""
    texts = [
        None if entry is None else shorten(diff.comparison.text[entry], diff.first)
        for entry in (before, after)
    ]
    own = after or before
    assert own is not None, "a line stands for an entry"
    is_same = texts[0] == texts[1]
    status = "=" if is_same else "-" if after is None else "+" if before is None else "~"
    line = {
        "s": status,
        "k": own.kind if own.kind in SLOTS else None,
        "m": shorten(own.path, diff.first) if own.path != diff.first else None,
        "b": texts[0],
        "a": None if is_same else texts[1],
        "i": sorted({place[source] for source in sources(own) if source in place}),
    }
    return {name: value for name, value in line.items() if value}


def sources(entry: Entry) -> list[Entry]:
    """The entries that one reads."""
    found: list[Entry] = []

    def note(value: Any) -> None:
        if isinstance(value, Ref):
            found.append(value.entry)

    map_values(entry.args, note)
    return found


def shorten(text: str, block: str) -> str:
    """Module paths from the block on, names of operators without what all have."""
    for long, short in (*USUAL, *([(f"{block}.", "")] if block else [])):
        text = text.replace(long, short)
    return text


def describe_diff(diff: BlockDiff) -> dict[str, Any]:
    """A block's difference, for the script."""
    lines = draw(diff)
    count = [line["s"] for line in lines].count
    slots = [line["k"] for line in lines if "k" in line]
    counts = {"removed": count("-"), "added": count("+"), "rewired": count("~")}
    said = [f"{number} {name}" for name, number in counts.items() if number]
    if slots:
        said.append(f"slots: {slots.count('read')} read, {slots.count('write')} written")
    return {
        "lines": lines,
        "said": ", ".join(said) or "the same graph",
        "saved": describe_amounts(diff.result.saved),
    }
