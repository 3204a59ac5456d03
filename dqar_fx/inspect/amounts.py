"""What a graph takes: multiply-accumulates, bytes of parameters and of activations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dqar_fx.costs.kernels import bytes_of, computes, source_of
from dqar_fx.costs.operation import Operation, count_macs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .flatten import FlatGraph, GraphEntry


@dataclass(frozen=True)
class Amounts:
    """What a graph, or a part of it, takes.

    Amounts are added, subtracted and multiplied by counts; they are falsy if all are zero.

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
        return self + other * -1

    def __mul__(self, times: int) -> Amounts:
        return Amounts(
            self.macs * times, self.parameter_bytes * times, self.activation_bytes * times
        )

    def __bool__(self) -> bool:
        return self != Amounts()


def add_amounts(amounts: Iterable[Amounts]) -> Amounts:
    """Add amounts up."""
    return sum(amounts, Amounts())


def amounts_of(entry: GraphEntry) -> Amounts:
    """Count what one entry takes, its parameters left out."""
    if entry.kind not in ("operator", "write") or not computes(entry.node):
        return Amounts()
    macs = count_macs(Operation.of(entry.node, source_of))
    return Amounts(macs, 0, bytes_of(entry.node) if entry.kind == "operator" else 0)


def amounts_by_module(flat: FlatGraph) -> dict[str, Amounts]:
    """Count what a graph takes, by the path of the module that computes or owns it."""
    found = defaultdict[str, Amounts](Amounts)
    for entry in flat.entries:
        found[entry.path] += amounts_of(entry)
    for path, nbytes in flat.parameters.items():
        found[path.rpartition(".")[0]] += Amounts(0, nbytes, 0)
    return dict(found)
