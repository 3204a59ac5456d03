"""The cheapest set of computed steps of a group of sites, where errors have a price in time.

A trajectory is cut into segments at the steps that compute. A segment costs the errors of its
forecasts, which depend on the last computed steps alone; so the best set is a shortest path
over pairs of successive computed steps, found exactly by dynamic programming. It is exact but
for the third step that a parabola reads, which is taken to lie as far back as the second.

Source: Bellman 1957 (shortest paths by stages).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.schedule.forecast import points_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.calibration.calibration import Floats

    from .measurements import Measurements


class SegmentErrors:
    """The errors of all segments of a model's sites.

    Args:
        measured: What was measured of the model.
        max_age: Steps that a kept value may live.
        orders: Orders that a forecast may have; the best is taken at each step.
        method: How to forecast.
    """

    def __init__(
        self, measured: Measurements, max_age: int, orders: Sequence[int], method: str
    ) -> None:
        self.max_age, self._measured = max_age, measured
        self.orders, self.method = tuple(orders), method
        steps, sites = measured.num_steps, len(measured.sites)
        # [step computed, distance of the one before (0: none), steps after it, sites]
        shape = (steps, max_age + 2, max_age + 1, sites)
        self._errors: Floats = np.zeros(shape)
        for computed in range(steps):
            for gap in range(min(max_age + 1, computed) + 1):
                if (gap == 0) == (computed == 0):
                    self._fill(computed, gap)

    @property
    def most_kept(self) -> int:
        """How many kept values the longest forecast reads."""
        return max(points_of(self.method, order) for order in self.orders)

    def _fill(self, computed: int, gap: int) -> None:
        """Sum the errors after a computed step, given the gap to the one before (0: none)."""
        kept = [computed] if gap == 0 else [computed, computed - gap]
        if gap and computed >= 2 * gap:
            kept.append(computed - 2 * gap)
        for age in range(1, self.max_age + 1):
            if computed + age < self._measured.num_steps:
                least = self.by_order(computed + age, kept).min(axis=0)
                self._errors[computed, gap, age] = self._errors[computed, gap, age - 1] + least
            else:
                self._errors[computed, gap, age] = self._errors[computed, gap, age - 1]

    def by_order(self, step: int, kept: Sequence[int]) -> Floats:
        """Errors of the pictures by a forecast's order: float64 ``[orders, sites]``.

        They are infinite where too few values are kept.

        Args:
            step: The step to forecast.
            kept: Steps whose values are kept, newest first.
        """
        return np.stack(
            [
                self._measured.errors(step, kept, order, self.method)
                if order == 0 or points_of(self.method, order) <= len(kept)
                else np.full(len(self._measured.sites), np.inf)
                for order in self.orders
            ]
        )

    def is_legal(self, computed: Sequence[int]) -> bool:
        """Whether computed steps ascend from 0 and let no kept value grow too old."""
        ends = [*computed, self._measured.num_steps]
        gaps = (after - before for before, after in pairwise(ends))
        return ends[0] == 0 and all(0 < gap <= self.max_age + 1 for gap in gaps)

    def error(self, group: Sequence[int], computed: Sequence[int]) -> float:
        """Sum the errors of a group that computes at these steps, ascending from 0."""
        total, columns = 0.0, list(group)
        ends = [*computed, self._measured.num_steps]
        for place, step in enumerate(computed):
            gap = step - computed[place - 1] if place else 0
            age = ends[place + 1] - step - 1
            total += float(self._errors[step, gap, age, columns].sum())
        return total

    def cheapest(self, group: Sequence[int], price: float) -> tuple[int, ...]:
        """Find the computed steps of a group that cost least; errors cost a price in ms."""
        steps = self._measured.num_steps
        errors = price * self._errors[..., list(group)].sum(axis=-1)
        cost = float(self._measured.saved_ms[list(group)].sum())
        best: dict[tuple[int, int], float] = {(0, 0): 0.0}
        before: dict[tuple[int, int], tuple[int, int]] = {}
        ends: dict[tuple[int, int], float] = {}
        for computed in range(steps):
            for gap in range(self.max_age + 2):
                state = (computed, gap)
                if state not in best:
                    continue
                for length in range(1, self.max_age + 2):
                    total = best[state] + errors[computed, gap, length - 1]
                    if computed + length >= steps:
                        ends[state] = min(ends.get(state, np.inf), total)
                        break
                    after = (computed + length, length)
                    if total + cost < best.get(after, np.inf):
                        best[after], before[after] = total + cost, state
        return path_to(min(ends, key=lambda state: (ends[state], state)), before)


def path_to(
    state: tuple[int, int], before: dict[tuple[int, int], tuple[int, int]]
) -> tuple[int, ...]:
    """List the computed steps on the way to a state."""
    steps = [state[0]]
    while state in before:
        state = before[state]
        steps.append(state[0])
    return tuple(reversed(steps))
