"""Two graphs of a block side by side, as lines that a page draws."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from dqar_fx.inspect.flatten import list_sources

from .facts import describe_amounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.inspect.flatten import GraphEntry

    from .blocks import BlockDiff

    DrawnLine = dict[str, Any]

SLOTS = ("read", "write")
"""Kinds of entries that touch slots."""
USUAL = (("aten.", ""), (".default(", "("))
"""What a page leaves out, since the names of most operators have it, and its replacement."""


def draw(diff: BlockDiff) -> list[DrawnLine]:
    """Draw the lines of a block: each is an entry of one graph or of both.

    Returns:
        For each line ``s``: ``=`` in both, ``~`` in both and rewired, ``-`` or ``+`` in one;
        ``k``: ``read`` or ``write`` of a slot; ``b`` and ``a``: its text before and after
        (``b`` alone where they are equal); ``i``: the numbers of the lines that it reads
        after, or before where it is gone; ``m``: the module that made it.
    """
    compared = diff.comparison
    pairs = list(pair_entries(compared.before.entries, compared.after.entries, compared.names))
    place = {entry: number for number, pair in enumerate(pairs) for entry in pair if entry}
    return [draw_line(diff, place, *pair) for pair in pairs]


def pair_entries(
    before: list[GraphEntry], after: list[GraphEntry], names: dict[GraphEntry, str]
) -> Iterator[tuple[GraphEntry | None, GraphEntry | None]]:
    """Put counterparts, which have one name, beside each other; others come before them."""
    old, new = ([f"{names[e]} {e.kind}" for e in each] for each in (before, after))
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(before[i:i_end], after[j:j_end], strict=True)
            continue
        yield from ((entry, None) for entry in before[i:i_end])
        yield from ((None, entry) for entry in after[j:j_end])


def draw_line(
    diff: BlockDiff,
    place: dict[GraphEntry, int],
    before: GraphEntry | None,
    after: GraphEntry | None,
) -> DrawnLine:
    """Draw the line of an entry before, after, or both; what is empty is left out."""
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
        "i": sorted({place[source] for source in list_sources(own) if source in place}),
    }
    return {name: value for name, value in line.items() if value}


def shorten(text: str, block: str) -> str:
    """Shorten module paths to what follows the block, and the names of operators."""
    for long, short in (*USUAL, *([(f"{block}.", "")] if block else [])):
        text = text.replace(long, short)
    return text


def describe_diff(diff: BlockDiff) -> dict[str, Any]:
    """Describe a block's difference for the page's script."""
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
