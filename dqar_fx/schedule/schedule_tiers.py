"""Schedule tiers: four rules of our own, for runs of any length, by a name.

A tier computes all sites at some steps, and forecasts all of them by a parabola at the others.
How far apart computed steps are follows from the number of steps; the last two always compute.
Tiers with care for both ends let the distance grow from 1, one by one, and fall to 1 again: a
forecast far ahead of steps that lie close together is a wild guess. The others begin with the
full distance. How far apart they may be was measured: ``python -m benchmarks.tiers``.

These are no tiers of a capture (``capture="graph"`` or ``"blocks"``).

Source of the forecasts: TaylorSeer, arXiv 2503.06923.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import ScheduleError, check_known

from .rules import AnyModelRule

if TYPE_CHECKING:
    from .rules import Mask, Moment

ORDER = 2
"""Order of the forecasts of all tiers, which share their graphs since it is one."""
SITES = "all"
"""Sites of all tiers, for the same reason."""


@dataclass(frozen=True)
class TierRule(AnyModelRule):
    """The rule of a tier: which steps compute, as a function of the number of steps.

    Attributes:
        name: Of the tier.
        fewest: Steps of the shortest run in which it forecasts.
        closest: How far apart computed steps are in the shortest runs.
        longer: They are one step further apart for each such number of steps.
        careful: Whether the distance grows and falls step by step.
    """

    name: str
    fewest: int
    closest: int
    longer: int
    careful: bool

    def every(self, num_steps: int) -> int:
        """Return how far apart computed steps are at most; 1 computes all."""
        return 1 if num_steps < self.fewest else self.closest + num_steps // self.longer

    def computed(self, num_steps: int) -> frozenset[int]:
        """Return the steps of a run that compute."""
        return find_computed(num_steps, self.every(num_steps), self.careful)

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow all sites to forecast, or none."""
        may = moment.step not in self.computed(moment.num_steps)
        return np.full(len(moment.sites), may)

    def why(self, moment: Moment, site: int) -> str:
        """Say how many steps compute, and how far apart they are."""
        del site
        num_steps = moment.num_steps
        return self.notice_for(num_steps) or (
            f"the schedule tier {self.name} computes {len(self.computed(num_steps))} of "
            f"{num_steps} steps, at most {self.every(num_steps)} apart"
        )

    def notice_for(self, num_steps: int) -> str:
        """Say that a run is too short for the tier to help; nothing of longer ones."""
        if num_steps >= self.fewest:
            return ""
        return (
            f"the schedule tier {self.name} computes everything in a run of {num_steps} "
            f"steps: it forecasts from {self.fewest} on, since among fewer a forecast loses "
            "more than this tier should"
        )


@lru_cache
def find_computed(num_steps: int, every: int, careful: bool) -> frozenset[int]:
    """Return the steps that compute; the first and the last two are among them.

    Args:
        num_steps: Steps of the run.
        every: The largest distance.
        careful: Whether distances grow by one from 1 to that, and fall by one to 1 again;
            where a run is too short for it, they grow less far.
    """
    if num_steps < 3:
        return frozenset(range(num_steps))
    growing = list(range(1, every)) if careful else []
    falling = growing[::-1] or [1]
    between = num_steps - 1 - sum(growing) - sum(falling)
    if between < 0:
        return find_computed(num_steps, every - 1, careful)
    count = -(-between // every)
    whole, rest = divmod(between, max(count, 1))
    even = [whole + 1] * rest + [whole] * (count - rest)
    later = sorted([*even, *falling], reverse=True)
    return frozenset(accumulate([*growing, *later], initial=0))


TIERS = {
    rule.name: rule
    for rule in (
        TierRule("quality", fewest=15, closest=1, longer=15, careful=True),
        TierRule("balanced", fewest=12, closest=1, longer=10, careful=True),
        TierRule("fast", fewest=10, closest=1, longer=10, careful=False),
        TierRule("fastest", fewest=8, closest=2, longer=10, careful=False),
    )
}
"""The tiers by name, from the one with the best pictures to the fastest."""


def find_tier(name: object) -> TierRule:
    """Return the rule of a tier.

    Raises:
        ScheduleError: There is none of that name.
    """
    return TIERS[check_known("schedule tier ", name, TIERS, ScheduleError)]
