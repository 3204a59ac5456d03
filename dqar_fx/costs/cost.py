"""What a part of a trajectory costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Cost:
    """What a part of a trajectory costs; costs add up, and are multiplied by counts.

    Attributes:
        macs: Multiply-accumulates.
        nbytes: Bytes read and written.
        ms: Predicted milliseconds.
    """

    macs: int = 0
    nbytes: int = 0
    ms: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.nbytes + other.nbytes, self.ms + other.ms)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.macs * times, self.nbytes * times, self.ms * times)


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Add costs up."""
    return reduce(add, costs, Cost())


def scale_times(costs: dict[str, Cost], total_ms: float) -> dict[str, Cost]:
    """Scale the times of costs so that they add up to a total, in the same proportions."""
    before_ms = sum(cost.ms for cost in costs.values())
    factor = total_ms / before_ms if before_ms else 0.0
    return {kind: replace(cost, ms=cost.ms * factor) for kind, cost in costs.items()}
