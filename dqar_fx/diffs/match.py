"""Which entry of one graph is which of another, names left aside.

First by value: the same operator on the same values gives the same value, whatever it is
called and wherever it stands. What is left lies behind a change, so that its value is another
one: it is paired with what the same module does with operands from the same places, then with
what the same module does at all. Equal candidates are paired in order.

Source: value numbering (Alpern, Wegman, Zadeck, "Detecting equality of variables in programs",
POPL 1988).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dqar_fx.flatten import Given, Hidden, Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from dqar_fx.flatten import Entry

    Numbers = dict[Hashable, int]
    Key = Callable[[Entry], Hashable]


def match_entries(before: Sequence[Entry], after: Sequence[Entry]) -> dict[Entry, Entry]:
    """The entry of ``before`` for each of ``after`` that has one."""
    known: Numbers = {}
    number = {**number_values(before, known), **number_values(after, known)}
    keys: list[Key] = [
        lambda entry: (number[entry], entry.place),
        lambda entry: number[entry],
        lambda entry: (*plain_key(entry), entry.type, fold(entry.args, local_token)),
        lambda entry: (*plain_key(entry), entry.type, fold(entry.args, no_token)),
        plain_key,
    ]
    pairs: dict[Entry, Entry] = {}
    for key in keys:
        pairs |= pair_up(left_over(before, pairs.values()), left_over(after, pairs), key)
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


def local_token(value: Any) -> Hashable:
    """Where an operand comes from, as far as is known without its value."""
    if isinstance(value, Ref):
        return value.entry.operator, value.entry.place, value.index
    return given_token(value)


def no_token(value: Any) -> Hashable:
    """A parameter; else that there is an operand."""
    is_parameter = isinstance(value, Given) and value.kind == "parameter"
    return given_token(value) if is_parameter else "operand"


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
