"""Who takes part: gates at a common reuse ratio, and schedules that follow the step alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.contenders import WARMUP
from dqar_fx import (
    BranchTable,
    Calibration,
    Policy,
    Schedule,
    entropy_gate,
    policy_gate,
    snr_gate,
)

MAX_AGE = 3
"""Steps that a kept output may live where a gate does not limit it itself."""
POLICY = "policy"
SNR, ENTROPY = f"SNR window, max_age={MAX_AGE}", f"entropy above, max_age={MAX_AGE}"
SMALLEST = 1e-12
NUM_HALVINGS = 30


@dataclass(frozen=True)
class Gated:
    """One row to be.

    Attributes:
        name: Who.
        setting: Its thresholds in words.
        schedule: What it decides.
        table: The same, for the sites of the model.
        is_gate: Whether it decides by a threshold that was searched for.
    """

    name: str
    setting: str
    schedule: Schedule
    table: BranchTable
    is_gate: bool = True


def reach_reuse(
    gate: Callable[[float], Schedule],
    sites: Sequence[str],
    target: float,
    bounds: tuple[float, float],
) -> float:
    """Halve an interval of thresholds until the reuse ratio is as near as it gets.

    A table has finitely many cells, and all sites may share their fate: the target may lie
    between two ratios that exist. Of all thresholds tried, the one that came nearest is
    taken; of equally near ones the first. Nothing is drawn by chance.

    Args:
        gate: Gives the schedule for a threshold.
        sites: Module paths.
        target: Reuse ratio in [0, 1].
        bounds: Thresholds at which the gate reuses least and most, in this order.

    Returns:
        The threshold.
    """

    def miss(threshold: float) -> float:
        return gate(threshold).resolve(sites).reuse_ratio - target

    few, many = bounds
    misses = {threshold: miss(threshold) for threshold in bounds}
    for _ in range(NUM_HALVINGS):
        middle = (few + many) / 2
        misses[middle] = miss(middle)
        few, many = (middle, many) if misses[middle] < 0 else (few, middle)
    return min(misses, key=lambda threshold: abs(misses[threshold]))


@dataclass(frozen=True)
class Family:
    """A gate whose threshold is open.

    Attributes:
        name: Who.
        gate: The schedule for a threshold.
        setting: Text with the place of the threshold.
        bounds: Thresholds at which it reuses least and most.
    """

    name: str
    gate: Callable[[float], Schedule]
    setting: str
    bounds: tuple[float, float]

    def settle(self, sites: Sequence[str], target: float) -> Gated:
        """The gate whose reuse ratio is nearest to a target."""
        found = reach_reuse(self.gate, sites, target, self.bounds)
        schedule, setting = self.gate(found), self.setting.format(found, 10**found)
        return Gated(self.name, setting, schedule, schedule.resolve(sites))


def list_families(
    scheduler: Any, calibration: Calibration, policy: Policy
) -> dict[str, Family]:
    """All gates, by name."""
    steps = calibration.num_steps
    linear = Schedule.linear(steps, WARMUP)
    aged = Schedule.linear(steps, WARMUP, max_age=MAX_AGE)
    snr = np.clip(calibration.snr, SMALLEST, 1 / SMALLEST)
    ratios = (float(np.log10(snr.max())) + 1, float(np.log10(snr.min())) - 1)
    changes = (0.0, float(np.ptp(np.log(snr))))
    known = policy.predicted[np.isfinite(policy.predicted)]
    errors = (float(np.log10(known.min())) - 1, float(np.log10(known.max())) + 1)

    def window(x: float, max_age: int | None = None) -> Schedule:
        return snr_gate(scheduler, steps, min_snr=10**x, max_age=max_age)

    def change(x: float) -> Schedule:
        return snr_gate(scheduler, steps, max_change=x)

    def entropy(x: float, **how: Any) -> Schedule:
        return entropy_gate(calibration, quantile=x, **how)

    def learned(x: float) -> Schedule:
        return policy_gate(policy, 10**x)

    below = partial(entropy, reuse="below", max_age=MAX_AGE)
    by_ratio = ("min_snr={1:.3g}", ratios)
    by_change = ("max_change={0:.3g}", changes)
    by_quantile = ("quantile={0:.3f}", (1.0, 0.0))
    by_error = ("max_error={1:.2e}", errors)
    families = (
        Family("SNR window", window, *by_ratio),
        Family(SNR, partial(window, max_age=MAX_AGE), *by_ratio),
        Family("SNR change", change, *by_change),
        Family("SNR change & linear", lambda x: change(x) & linear, *by_change),
        Family("entropy above", entropy, *by_quantile),
        Family(ENTROPY, partial(entropy, max_age=MAX_AGE), *by_quantile),
        Family(f"entropy below, max_age={MAX_AGE}", below, by_quantile[0], (0.0, 1.0)),
        Family(POLICY, learned, *by_error),
        Family(f"policy & linear max_age={MAX_AGE}", lambda x: learned(x) & aged, *by_error),
    )
    return {family.name: family for family in families}


def list_rivals(steps: int, sites: Sequence[str]) -> list[Gated]:
    """Schedules that decide by the step alone."""
    interval, name = Schedule.interval, "interval every={} warmup={}"
    schedules = {
        name.format(every, warmup): interval(steps, every, warmup=warmup)
        for every, warmup in ((2, 1), (2, WARMUP), (3, WARMUP))
    }
    linear = Schedule.linear(steps, WARMUP, max_age=MAX_AGE)
    schedules[f"linear warmup={WARMUP} max_age={MAX_AGE}"] = linear
    return [
        Gated(name, "-", schedule, schedule.resolve(sites), is_gate=False)
        for name, schedule in schedules.items()
    ]
