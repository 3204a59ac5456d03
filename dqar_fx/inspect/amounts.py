"""What a graph takes: multiply-accumulates, bytes of parameters and of activations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from dqar_fx.costs.kernels import bytes_of, computes, source_of
from dqar_fx.costs.operation import Operation, count_macs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .flatten import Entry, Flat


@dataclass(frozen=True)
class Amounts:
    """Of a graph, or a part of it.

    Attributes:
        macs: Multiply-accumulates.
        parameter_bytes: Bytes of the parameters that it reads, each once.
        activation_bytes: Bytes of what its nodes compute; views and writes of slots are free.
    """

    macs: int = 0
    parameter_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.macs + other.macs,
            self.parameter_bytes + other.parameter_bytes,
            self.activation_bytes + other.activation_bytes,
        )

    def __sub__(self, other: Amounts) -> Amounts:
        return self + Amounts(-other.macs, -other.parameter_bytes, -other.activation_bytes)

    def __bool__(self) -> bool:
        return self != Amounts()


def sum_up(amounts: Iterable[Amounts]) -> Amounts:
    """The sum of amounts."""
    return reduce(add, amounts, Amounts())


def amounts_of(entry: Entry) -> Amounts:
    """Of one entry, parameters left out."""
    if entry.kind not in ("operator", "write") or not computes(entry.node):
        return Amounts()
    macs = count_macs(Operation.of(entry.node, source_of))
    return Amounts(macs, 0, bytes_of(entry.node) if entry.kind == "operator" else 0)


def amounts_by_module(flat: Flat) -> dict[str, Amounts]:
    """Of a graph, by the module path that computes or owns."""
    found = defaultdict[str, Amounts](Amounts)
    for entry in flat.entries:
        found[entry.path] += amounts_of(entry)
    for path, nbytes in flat.parameters.items():
        found[path.rpartition(".")[0]] += Amounts(0, nbytes, 0)
    return dict(found)
