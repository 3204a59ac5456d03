"""A short run that measures regions as they are lowered, in steps as they are run.

Some rows are enough to call every distinct region: first those in which all sites do the same,
then whichever of the schedules' rows call most of what is missing. A region takes less time
right after one of the same kind than after another, so that as many rows are made of these in
which successive blocks do what successive rows do. All take turns, step by step, each block
with its own parameters and its own place in the step, so that caches are about as warm as in a
trajectory. What any row takes is then the sum over the regions that it calls. No trajectory of
any schedule is run. Conditioning, which a new prompt needs once, is evaluated by itself at the
end of each turn.

A turn is about as long as a trajectory, and its mean counts: a median of short pieces would
leave out the disturbances that trajectories have. Turns that differ most are left out.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .rehearsal import Rehearsal
from .rows import all_stored, list_rows, with_schedule
from .workload import ahead_key
from .workload_counter import WorkloadCounter

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.schedule.schedule import Schedule

    from .rows import Row

    Times = dict[str, float]

MIN_REGION_TURNS, MAX_REGION_TURNS = 4, 40
TURN_SHARE = 0.1
"""The share of the whole time that one turn may take."""
STEP = "step"
"""The name, among those of regions, for what a step takes beside them."""


@dataclass(frozen=True)
class RegionTimes:
    """How long regions were measured to take.

    Attributes:
        region_s: Seconds of one call of a region, by `region_key`, and of conditioning that is
            evaluated ahead, by `ahead_key`.
        step_s: Seconds of a step, its regions left out.
    """

    region_s: Mapping[str, float]
    step_s: float


def measure_regions(
    denoiser: Denoiser,
    schedules: Sequence[Schedule],
    device: torch.device,
    budget_s: float,
) -> RegionTimes:
    """Measure all regions that a denoiser or other schedules call.

    Compiles those that are not compiled yet; the first turn does, and does not count.
    """
    chosen = choose_rows(denoiser, schedules)
    rows = [*chosen, *stagger_rows(denoiser, chosen)]
    others = [with_schedule(denoiser, each) for each in schedules]
    lengths = {each.table.num_steps for each in (denoiser, *others)}
    rehearsal = Rehearsal(denoiser, device)
    take_turn(rehearsal, rows, lengths)
    begun = time.perf_counter()
    take_turn(rehearsal, rows, lengths)
    once_s = time.perf_counter() - begun
    repeats = max(round(TURN_SHARE * budget_s / once_s), 1)
    turns: list[Times] = []
    begun = time.perf_counter()
    while len(turns) < MIN_REGION_TURNS or time.perf_counter() - begun < budget_s:
        start = len(turns) % len(rows)  # each turn begins with another row
        turned = [*rows[start:], *rows[:start]]
        turns.append(take_turn(rehearsal, turned * repeats, lengths))
        if len(turns) == MAX_REGION_TURNS:
            break
    region_s = {name: inner_mean([turn[name] for turn in turns]) for name in turns[0]}
    return RegionTimes(step_s=region_s.pop(STEP), region_s=region_s)


def take_turn(rehearsal: Rehearsal, rows: Sequence[Row], lengths: Collection[int]) -> Times:
    """Run all rows, and the conditioning for each length, once; the mean seconds of parts."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for step in rehearsal.run(rows):
        seconds[STEP].append(step.rest_s)
        for name, each_s in step.calls:
            seconds[name].append(each_s)
    in_steps = frozenset(seconds)
    for num_steps in sorted(lengths):
        ahead = rehearsal.evaluate_conditioning(num_steps)
        seconds[ahead_key(num_steps)].append(ahead.outside_s)
        for name, each_s in ahead.own:
            if name not in in_steps:
                seconds[name].append(each_s)
    return {name: statistics.fmean(each) for name, each in seconds.items()}


def inner_mean(values: Sequence[float]) -> float:
    """Take the mean of values, a quarter at either end left out."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def choose_rows(denoiser: Denoiser, schedules: Sequence[Schedule]) -> list[Row]:
    """Choose few rows that together call every region that any row calls."""
    counter, liveness = WorkloadCounter(denoiser.program), denoiser.program.liveness

    def regions_of(row: Row) -> set[str]:
        """What a step of a row calls; conditioning is one for all where it is compiled."""
        found = set(counter.count_row(row).regions)
        if not denoiser.program.ahead.is_compiled:
            found |= counter.count_needed(liveness.needs(row).step).regions.keys()
        return found

    calls = {row: regions_of(row) for row in list_rows(denoiser, schedules)}
    missing = set[str]().union(*calls.values())
    alike = all_stored(denoiser.program)
    calls = {alike: regions_of(alike)} | calls
    uniform = [row for row in calls if len(set(row)) == 1]
    chosen: list[Row] = []
    while missing:
        best = next((row for row in uniform if calls[row] & missing), None)
        if best is None:
            best = max(calls, key=lambda row: len(calls[row] & missing))
        missing -= calls[best]
        chosen.append(best)
    return chosen


def stagger_rows(denoiser: Denoiser, rows: Sequence[Row]) -> list[Row]:
    """Mix rows: the first block does what one of them does, the second what the next does.

    Mixed rows that would need a region of their own are left out.
    """
    counter = WorkloadCounter(denoiser.program)
    known = set[str]().union(*(counter.count_row(row).regions for row in rows))
    blocks = [call.columns for call in counter.plan.calls if call.columns]
    made = []
    for first, row in enumerate(rows):
        mixed = list(row)
        for place, columns in enumerate(blocks, start=first):
            for column in columns:
                mixed[column] = rows[place % len(rows)][column]
        made.append(tuple(mixed))
    return [row for row in made if counter.count_row(row).regions.keys() <= known]
