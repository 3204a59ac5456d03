"""Which steps compute and which forecast, the same for all sites, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.schedule.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LEAST_COMPUTED = 0.6
"""Share of the steps without reuse that a pattern of the same price still computes."""


@dataclass(frozen=True)
class Prices:
    """What steps cost, measured beside each other.

    Attributes:
        computed_ms: Milliseconds of a step that computes all and keeps nothing.
        kept_ms: Of one whose outputs are kept.
        forecast_ms: Of one that forecasts, by the order of the forecast; 0 is reuse.
        cache_bytes: What is kept for each order.
    """

    computed_ms: float
    kept_ms: float
    forecast_ms: Mapping[int, float]
    cache_bytes: Mapping[int, int]


@dataclass(frozen=True)
class Pattern:
    """Which steps compute.

    Attributes:
        letters: One for each step: C computes, F forecasts, R reuses.
        order: Of forecasts; 0 where nothing is forecast.
    """

    letters: str
    order: int = 0

    @classmethod
    def spread(cls, num_computed: int, num_read: int, order: int) -> Pattern:
        """Spread steps that read what is kept over the gaps between those that compute.

        The first steps compute, as many as a forecast reads, and so does the last.
        """
        gaps = num_computed - order - 1
        places = order + np.linspace(0, gaps - 1, num_read).round().astype(int)
        letter = "F" if order else "R"
        read = np.bincount(places, minlength=num_computed)
        return cls("".join("C" + letter * int(number) for number in read), order)

    @property
    def num_read(self) -> int:
        """Steps that read what is kept."""
        return len(self.letters) - self.letters.count("C")

    def ms(self, prices: Prices) -> float:
        """The time of a trajectory in the denoiser, in milliseconds."""
        if not self.num_read:
            return len(self.letters) * prices.computed_ms
        computed = (len(self.letters) - self.num_read) * prices.kept_ms
        return computed + self.num_read * prices.forecast_ms[self.order]

    def cache_bytes(self, prices: Prices) -> int:
        """What is kept, in bytes."""
        return prices.cache_bytes[self.order] if self.num_read else 0

    def schedule(self, method: str, sites: str | tuple[str, ...]) -> Schedule:
        """The schedule of this pattern."""
        orders = self.order if "F" in self.letters else None
        written = Schedule.from_actions(self.letters, orders=orders, method=method)
        return replace(written, sites=sites)

    def moves(self) -> Iterator[Pattern]:
        """Patterns of the same price where one step that reads comes one earlier or later."""
        first = self.order + 1
        for place in range(first, len(self.letters) - 1):
            one, other = self.letters[place], self.letters[place + 1]
            if one != other:
                swapped = self.letters[:place] + other + one + self.letters[place + 2 :]
                yield Pattern(swapped, self.order)


def list_patterns(ms: float, prices: Prices, orders: Sequence[int]) -> list[Pattern]:
    """List patterns that spend a time: first the one without reuse, then the likeliest.

    Those come first that leave out few computed steps for many steps that read, which makes
    the solver's grid finer, and forecasts of the highest order.
    """
    most = int(ms / prices.computed_ms + 1e-9)
    plain = Pattern("C" * most)
    found = [
        Pattern.spread(num_computed, num_read, order)
        for num_computed in range(most, int(LEAST_COMPUTED * most), -1)
        for order in sorted(orders, reverse=True)
        for num_read in list_numbers(ms, prices, num_computed, order)
    ]
    return list(dict.fromkeys([plain, *found]))


def list_numbers(ms: float, prices: Prices, num_computed: int, order: int) -> list[int]:
    """How many steps may read: as many as can be paid, but one or two in a gap at most."""
    gaps = num_computed - order - 1
    left = ms - num_computed * prices.kept_ms
    affordable = int(left / max(prices.forecast_ms[order], 1e-9) + 1e-9)
    numbers = (min(affordable, gaps), min(affordable, 2 * gaps))
    return [number for number in numbers if number > 0]
