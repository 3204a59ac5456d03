"""Find the threshold at which a gate reuses as much as is wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dqar_fx import BranchTable, Schedule

NUM_HALVINGS = 30


@dataclass(frozen=True)
class Reached:
    """A schedule with a threshold that was found.

    Attributes:
        threshold: Of the gate.
        schedule: With that threshold.
        table: Of the schedule.
    """

    threshold: float
    schedule: Schedule
    table: BranchTable


def reach_reuse(
    gate: Callable[[float], Schedule],
    sites: Sequence[str],
    target: float,
    bounds: tuple[float, float],
) -> Reached:
    """Halve an interval of thresholds until the reuse ratio is as near as it gets.

    A table has finitely many cells, and all sites may share their fate: the target may lie
    between two ratios that exist. Of all thresholds tried, the one that came nearest is
    taken; of equally near ones the first. Nothing is drawn by chance.

    Args:
        gate: Gives the schedule for a threshold.
        sites: Module paths.
        target: Reuse ratio in [0, 1].
        bounds: Thresholds at which the gate reuses least and most, in this order.
    """
    few, many = bounds
    tried = [resolve(gate, sites, few), resolve(gate, sites, many)]
    for _ in range(NUM_HALVINGS):
        tried.append(resolve(gate, sites, (few + many) / 2))
        if tried[-1].table.reuse_ratio < target:
            few = tried[-1].threshold
        else:
            many = tried[-1].threshold
    return min(tried, key=lambda reached: abs(reached.table.reuse_ratio - target))


def resolve(
    gate: Callable[[float], Schedule], sites: Sequence[str], threshold: float
) -> Reached:
    """A gate's schedule and table for a threshold."""
    schedule = gate(threshold)
    return Reached(threshold, schedule, schedule.resolve(sites))
