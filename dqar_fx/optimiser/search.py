"""The search for tables: exact under an additive model, then tried on pictures and improved.

The model of errors (see `Measurements`) adds up what each reuse does alone, while the errors
of a trajectory cancel and compound: it tells good tables from bad ones, but not the best from
the good. So its best tables are tried on pictures, beside regular ones, and improved bit by
bit: computed steps are moved, added and removed within the time that is allowed. Whatever
seems better than all before is tried on other seeds as well: the best of many is partly luck.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from .candidate import Candidate, group_sites, schedule_candidate
from .front import Point
from .trials import pooled_psnr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dqar_fx.guidance.guidance import Guidance

    from .candidate import ScheduledCandidate, SiteGroups
    from .measurements import Measurements
    from .segments import SegmentErrors
    from .trials import ScheduleTrials

NEIGHBOURS = 24
"""How many moves are compared before one of them is tried."""
GREEDY = 0.3
"""Share of moves that the model chooses; the others are drawn at random."""
CHANGE = 0.1
"""Share of moves that may also change guidance, and of those that may change the order."""
MIN_SPENT = 0.75
"""Share of the time that a regular table must spend to be tried."""
MAX_FIRST = 6
"""How many steps at the beginning a regular table may compute."""


@dataclass
class Search:
    """Tries candidates, and keeps the results.

    Attributes:
        measured: What was measured of the model.
        segments: Errors of its segments.
        trials: Tries schedules on pictures.
        others: Tries on other seeds what seems better than all before.
        sites: The sites that schedules are meant for, as for ``transform``.
        cache_bytes: Most slot bytes of one stream; None for any number.
        guidances: What the unconditional stream may do.
        rng: Draws moves.
        report: Called with each point that was tried.
        points: Per candidate its point; None if it keeps too many bytes.
    """

    measured: Measurements
    segments: SegmentErrors
    trials: ScheduleTrials
    others: ScheduleTrials
    sites: str | tuple[str, ...]
    cache_bytes: int | None
    guidances: tuple[Guidance | None, ...]
    rng: np.random.Generator
    report: Callable[[Point], None]
    points: dict[Candidate, Point | None] = field(default_factory=dict)

    def improve(self, ms: float, num_trials: int) -> Point | None:
        """Find the best point within a time in milliseconds, by some trials; or None."""
        left = num_trials
        for candidate in self.proposals(ms):
            left -= candidate not in self.points
            self.try_out(candidate)
            if left <= num_trials // 2:  # the other half improves the best of these
                break
        best = self.best_within(ms)
        while best is not None and left > 0:
            move = self.next_move(best, ms)
            if move is None:
                break
            self.try_out(move)
            left -= 1
            best = self.best_within(ms)
        return None if best is None else self.points[best]

    def proposals(self, ms: float) -> Iterator[Candidate]:
        """List the candidates that a search begins with, within a time in milliseconds.

        They are the model's best, and regular ones, which compute the first steps and then
        steps at equal intervals, as FORA and TaylorSeer do.
        """
        plain, *guided = self.guidances
        groupings = group_sites(self.measured)
        together = groupings["together"]
        solved = [self.solve(groups, ms, plain) for groups in groupings.values()]
        solved += [self.solve(together, ms, guidance) for guidance in guided]
        yield from (each for each in solved if each is not None)
        regular = [
            [
                Candidate(together, (steps,), guidance, order)
                for steps, order in self.list_regular()
                for guidance in guidances
            ]
            for guidances in ((plain,), guided)
        ]
        # a plain one, a guided one, and so on: neither kind crowds out the other
        mixed = (each for pair in zip_longest(*regular) for each in pair if each is not None)
        yield from (each for each in mixed if MIN_SPENT * ms <= each.ms(self.measured) <= ms)

    def list_regular(self) -> list[tuple[tuple[int, ...], int]]:
        """List regular sets of computed steps, each with an order of forecasts.

        They come in the order in which one would write them by hand: few first steps and the
        highest order come first.
        """
        steps = self.measured.num_steps
        found = dict.fromkeys(
            ((*range(first), *range(first - 1 + every, steps, every)), order)
            for first in range(1, min(MAX_FIRST, steps - 1) + 1)
            for order in sorted(self.segments.orders, reverse=True)
            for every in range(1, self.segments.max_age + 2)
        )
        return list(found)

    def solve(
        self, groups: SiteGroups, ms: float, guidance: Guidance | None
    ) -> Candidate | None:
        """Find the best candidate within a time, by bisection of the price of errors."""
        low, high, best = -12.0, 18.0, None
        for _ in range(26):
            middle = (low + high) / 2
            price = float(np.exp(middle) * self.measured.step_ms)
            steps = tuple(self.segments.cheapest(group, price) for group in groups)
            candidate = Candidate(groups, steps, guidance)
            if candidate.ms(self.measured) <= ms:
                low, best = middle, candidate
            else:
                high = middle
        return best

    def try_out(self, candidate: Candidate) -> Point | None:
        """Try a candidate, unless it was tried; None if it keeps too many bytes."""
        if candidate not in self.points:
            scheduled = schedule_candidate(candidate, self.measured, self.segments, self.sites)
            allowed = self.cache_bytes is None or scheduled.cache_bytes <= self.cache_bytes
            self.points[candidate] = self._point(candidate, scheduled) if allowed else None
        return self.points[candidate]

    def _point(self, candidate: Candidate, scheduled: ScheduledCandidate) -> Point:
        """Try a candidate on pictures, and on other seeds if it is better than all before."""
        ms = candidate.ms(self.measured)
        tried = scheduled.schedule, self.measured.sites, candidate.guidance
        psnr_db = self.trials.psnr(*tried)
        best = self.best_within(ms)
        known = None if best is None else self.points[best]
        if known is None or psnr_db > known.psnr_db:
            psnr_db = pooled_psnr(psnr_db, self.others.psnr(*tried))
        point = Point(
            ms=ms,
            psnr_db=psnr_db,
            predicted_error=scheduled.error,
            cache_bytes=scheduled.cache_bytes,
            schedule=scheduled.schedule,
            guidance=candidate.guidance,
        )
        self.report(point)
        return point

    def best_within(self, ms: float) -> Candidate | None:
        """The tried candidate with the best pictures within a time; None if there is none."""
        within = [
            (point.psnr_db, -point.ms, candidate)
            for candidate, point in self.points.items()
            if point is not None and point.ms <= ms
        ]
        return max(within, key=lambda row: row[:2])[2] if within else None

    def next_move(self, candidate: Candidate, ms: float) -> Candidate | None:
        """Choose a neighbour that has not been tried, within a time; None if none is found."""
        found = dict.fromkeys(
            move
            for _ in range(4 * NEIGHBOURS)
            for move in [self.move(candidate)]
            if move is not None and move not in self.points and move.ms(self.measured) <= ms
        )
        moves = list(found)[:NEIGHBOURS]
        if not moves:
            return None
        if self.rng.random() < GREEDY:
            return min(moves, key=self.predict)
        return moves[int(self.rng.integers(len(moves)))]

    def predict(self, candidate: Candidate) -> float:
        """Predict the error of a candidate by the model."""
        pairs = zip(candidate.groups, candidate.computed, strict=True)
        return sum(self.segments.error(group, steps) for group, steps in pairs)

    def move(self, candidate: Candidate) -> Candidate | None:
        """Draw a neighbour; None where the move lets values grow too old."""
        rng, steps = self.rng, [set(each) for each in candidate.computed]
        one = steps[int(rng.integers(len(steps)))]
        kind = rng.choice(["shift", "jump", "swap"], p=[0.6, 0.2, 0.2])
        taken = sorted(one - {0})
        if taken and kind != "swap":
            old = int(rng.choice(taken))
            one.discard(old)
            near = kind == "shift"
            one.add(old + int(rng.choice([-1, 1])) if near else self._any_step())
        else:
            other = steps[int(rng.integers(len(steps)))]
            other.add(self._any_step())
            if taken and rng.random() < 0.9:
                one.discard(int(rng.choice(taken)))
        moved = tuple(tuple(sorted(each)) for each in steps)
        is_legal = all(self.segments.is_legal(each) for each in moved)
        guidance, order = candidate.guidance, candidate.order
        if rng.random() < CHANGE:
            guidance = self.guidances[int(rng.integers(len(self.guidances)))]
        if rng.random() < CHANGE:
            choices = (None, *self.segments.orders)
            order = choices[int(rng.integers(len(choices)))]
        return Candidate(candidate.groups, moved, guidance, order) if is_legal else None

    def _any_step(self) -> int:
        return int(self.rng.integers(1, self.measured.num_steps))
