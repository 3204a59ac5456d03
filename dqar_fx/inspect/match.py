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

from .flatten import Given, Hidden, Ref, map_values

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from .flatten import Entry

    Numbers = dict[Hashable, int]
    Key = Callable[[Entry], Hashable]


LEAST_AGREEMENT = (1.0, 0.5, 0.0)
"""Of operands, in the rounds of pairing: what is sure first, at last whatever is left."""


def match_entries(before: Sequence[Entry], after: Sequence[Entry]) -> dict[Entry, Entry]:
    """The entry of ``before`` for each of ``after`` that has one."""
    known: Numbers = {}
    number = {**number_values(before, known), **number_values(after, known)}
    keys: list[Key] = [
        lambda entry: (number[entry], entry.place),
        lambda entry: number[entry],
    ]
    pairs: dict[Entry, Entry] = {}
    for key in keys:
        pairs |= pair_up(left_over(before, pairs.values()), left_over(after, pairs), key)
    for least in LEAST_AGREEMENT:
        pair_alike(left_over(before, pairs.values()), left_over(after, pairs), pairs, least)
    return pairs


def left_over(entries: Sequence[Entry], paired: Iterable[Entry]) -> list[Entry]:
    """Those that have no counterpart yet."""
    done = set(paired)
    return [entry for entry in entries if entry not in done]


def pair_up(before: list[Entry], after: list[Entry], key: Key) -> dict[Entry, Entry]:
    """Pairs of equal keys, in order."""
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
    before: Sequence[Entry], after: Sequence[Entry], pairs: dict[Entry, Entry], least: float
) -> None:
    """Pair each entry, in order, with the one that agrees with it best; at least so much."""
    candidates = defaultdict[Any, list[Any]](list)
    for entry in before:
        candidates[plain_key(entry)].append(entry)
    for entry in after:
        group = candidates[plain_key(entry)]
        if not group:
            continue
        best = max(group, key=lambda other: rate(other, entry, pairs))
        if rate(best, entry, pairs)[0] >= least:
            pairs[entry] = best
            group.remove(best)


def rate(before: Entry, after: Entry, pairs: dict[Entry, Entry]) -> tuple[float, bool]:
    """The share of operands that agree, from 0 to 1, and whether the values look alike."""
    operands = list_operands(before), list_operands(after)
    most = max(map(len, operands))
    agreeing = sum(agree(*each, pairs) for each in zip(*operands, strict=False))
    return agreeing / most if most else 1.0, before.type == after.type


def agree(before: Any, after: Any, pairs: dict[Entry, Entry]) -> float:
    """How much two operands are the same: 1 if they are, less if they come from one place."""
    if isinstance(before, Ref) and isinstance(after, Ref):
        if pairs.get(after.entry) is before.entry:
            return float(before.index == after.index)
        is_near = place_token(before) == place_token(after) and after.entry not in pairs
        return 0.5 * is_near
    return float(before == after)


def place_token(value: Ref) -> Hashable:
    """Where an operand comes from, whatever its value."""
    return value.entry.operator, value.entry.place, value.index


def list_operands(entry: Entry) -> list[Any]:
    """What an entry reads, constants left out."""
    found: list[Any] = []
    map_values(entry.args, found.append)
    return found


def number_values(entries: Sequence[Entry], known: Numbers) -> dict[Entry, int]:
    """A number for each entry; equal ones for equal values. ``known`` has all so far."""
    numbers: dict[Entry, int] = {}

    def token(value: Any) -> Hashable:
        if isinstance(value, Ref):
            return numbers[value.entry], value.index
        return given_token(value)

    for entry in entries:
        own = str(entry.node.target) if entry.kind == "input" else ""
        type_ = entry.type if entry.kind in ("input", "read") else ""
        key = (entry.kind, entry.operator, own, type_, fold(entry.args, token))
        numbers[entry] = known.setdefault(key, len(known))
    return numbers


def plain_key(entry: Entry) -> tuple[Hashable, ...]:
    """What an entry does and for whom."""
    hidden = tuple(each.text for each in entry.args if isinstance(each, Hidden))
    return entry.kind, entry.operator, entry.place, entry.site, hidden


def given_token(value: Given) -> Hashable:
    """What is given, and of which shape."""
    return value.kind, value.text, value.type


def fold(value: Any, token: Callable[[Any], Hashable]) -> Hashable:
    """Nested operands as something hashable."""
    if isinstance(value, Ref | Given):
        return token(value)
    if isinstance(value, list | tuple):
        return tuple(fold(each, token) for each in value)
    if isinstance(value, dict):
        return tuple((name, fold(each, token)) for name, each in sorted(value.items()))
    return value.text if isinstance(value, Hidden) else repr(value)
