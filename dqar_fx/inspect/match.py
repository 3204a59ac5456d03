"""Which entry of one graph is which of another, names left aside.

First by value: the same operator on the same values gives the same value, whatever it is
called and wherever it stands. What is left lies behind a change, so that its value is another
one: it is paired, in the order of execution, with that entry of the same operator and module
whose operands agree best, as far as these are paired already.

Source: value numbering (Alpern, Wegman, Zadeck, "Detecting equality of variables in programs",
POPL 1988).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from .flatten import EntryValue, StaticOperand, UnprintedText, list_operands

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from .flatten import GraphEntry

    Numbers = dict[Hashable, int]
    MatchKey = Callable[[GraphEntry], Hashable]
    Pairs = dict[GraphEntry, GraphEntry]

LEAST_AGREEMENT = (1.0, 0.5, 0.0)
"""Least share of operands that agree, by round of pairing: what is sure comes first."""


def match_entries(before: Sequence[GraphEntry], after: Sequence[GraphEntry]) -> Pairs:
    """Find, for each entry of ``after`` that has one, its counterpart in ``before``."""
    known: Numbers = {}
    number = {**number_values(before, known), **number_values(after, known)}
    keys: list[MatchKey] = [
        lambda entry: (number[entry], entry.place),
        lambda entry: number[entry],
    ]
    pairs: Pairs = {}
    for key in keys:
        pairs |= pair_up(left_over(before, pairs.values()), left_over(after, pairs), key)
    for least in LEAST_AGREEMENT:
        pair_alike(left_over(before, pairs.values()), left_over(after, pairs), pairs, least)
    return pairs


def left_over(entries: Sequence[GraphEntry], paired: Iterable[GraphEntry]) -> list[GraphEntry]:
    """List the entries that have no counterpart yet."""
    done = set(paired)
    return [entry for entry in entries if entry not in done]


def pair_up(before: list[GraphEntry], after: list[GraphEntry], key: MatchKey) -> Pairs:
    """Pair entries of equal keys, in order."""
    waiting = defaultdict[Any, list[Any]](list)
    for entry in reversed(before):
        waiting[key(entry)].append(entry)
    pairs = {}
    for entry in after:
        candidates = waiting.get(key(entry))
        if candidates:
            pairs[entry] = candidates.pop()
    return pairs


def pair_alike(
    before: Sequence[GraphEntry], after: Sequence[GraphEntry], pairs: Pairs, least: float
) -> None:
    """Pair each entry with the one that agrees best, if ``least`` of their operands do."""
    candidates = defaultdict[Any, list[Any]](list)
    for entry in before:
        candidates[plain_key(entry)].append(entry)
    for entry in after:
        group = candidates[plain_key(entry)]
        if not group:
            continue
        best = max(group, key=lambda other: rate_pair(other, entry, pairs))
        if rate_pair(best, entry, pairs)[0] >= least:
            pairs[entry] = best
            group.remove(best)


def rate_pair(before: GraphEntry, after: GraphEntry, pairs: Pairs) -> tuple[float, bool]:
    """Rate a pair: the share of operands that agree, and whether dtype and shape are equal."""
    operands = list_operands(before), list_operands(after)
    most = max(map(len, operands))
    agreeing = sum(rate_operands(*each, pairs) for each in zip(*operands, strict=False))
    return agreeing / most if most else 1.0, before.type == after.type


def rate_operands(before: Any, after: Any, pairs: Pairs) -> float:
    """Rate two operands: 1 if they are the same, 0.5 if one place gives both, else 0."""
    if isinstance(before, EntryValue) and isinstance(after, EntryValue):
        if pairs.get(after.entry) is before.entry:
            return float(before.index == after.index)
        is_near = place_token(before) == place_token(after) and after.entry not in pairs
        return 0.5 * is_near
    return float(before == after)


def place_token(value: EntryValue) -> Hashable:
    """Say where an operand comes from, whatever its value."""
    return value.entry.operator, value.entry.place, value.index


def number_values(entries: Sequence[GraphEntry], known: Numbers) -> dict[GraphEntry, int]:
    """Give equal values equal numbers, which are ``known`` or are added to these."""
    numbers: dict[GraphEntry, int] = {}

    def token(value: Any) -> Hashable:
        if isinstance(value, EntryValue):
            return numbers[value.entry], value.index
        return value.kind, value.text, value.type

    for entry in entries:
        own = str(entry.node.target) if entry.kind == "input" else ""
        type_ = entry.type if entry.kind in ("input", "read") else ""
        key = (entry.kind, entry.operator, own, type_, fold(entry.args, token))
        numbers[entry] = known.setdefault(key, len(known))
    return numbers


def plain_key(entry: GraphEntry) -> tuple[Hashable, ...]:
    """Say what an entry does and for whom, whatever it reads."""
    hidden = tuple(each.text for each in entry.args if isinstance(each, UnprintedText))
    return entry.kind, entry.operator, entry.place, entry.site, hidden


def fold(value: Any, token: Callable[[Any], Hashable]) -> Hashable:
    """Make nested operands hashable, with a token for each value and static operand."""
    if isinstance(value, EntryValue | StaticOperand):
        return token(value)
    if isinstance(value, list | tuple):
        return tuple(fold(each, token) for each in value)
    if isinstance(value, dict):
        return tuple((name, fold(each, token)) for name, each in sorted(value.items()))
    return value.text if isinstance(value, UnprintedText) else repr(value)
