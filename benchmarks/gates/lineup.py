"""Who takes part: gates at a common reuse ratio, and schedules that follow the step alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gates.reach import reach_reuse
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


@dataclass(frozen=True)
class Family:
    """A gate whose threshold is open.

    Attributes:
        name: Who.
        setting: Text with the place of the threshold.
        gate: The schedule for a threshold.
        bounds: Thresholds at which it reuses least and most.
    """

    name: str
    setting: str
    gate: Callable[[float], Schedule]
    bounds: tuple[float, float]

    def settle(self, sites: Sequence[str], target: float) -> Gated:
        """The gate whose reuse ratio is nearest to a target."""
        found = reach_reuse(self.gate, sites, target, self.bounds)
        setting = self.setting.format(found.threshold, 10**found.threshold)
        return Gated(self.name, setting, found.schedule, found.table)


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

    def above(x: float, max_age: int | None = None) -> Schedule:
        return entropy_gate(calibration, quantile=x, max_age=max_age)

    def below(x: float) -> Schedule:
        return entropy_gate(calibration, quantile=x, reuse="below", max_age=MAX_AGE)

    def learned(x: float) -> Schedule:
        return policy_gate(policy, 10**x)

    families = (
        Family("SNR window", "min_snr={1:.3g}", window, ratios),
        Family(SNR, "min_snr={1:.3g}", lambda x: window(x, MAX_AGE), ratios),
        Family("SNR change", "max_change={0:.3g}", change, changes),
        Family(
            "SNR change & linear", "max_change={0:.3g}", lambda x: change(x) & linear, changes
        ),
        Family("entropy above", "quantile={0:.3f}", above, (1.0, 0.0)),
        Family(ENTROPY, "quantile={0:.3f}", lambda x: above(x, MAX_AGE), (1.0, 0.0)),
        Family(f"entropy below, max_age={MAX_AGE}", "quantile={0:.3f}", below, (0.0, 1.0)),
        Family(POLICY, "max_error={1:.2e}", learned, errors),
        Family(
            f"policy & linear max_age={MAX_AGE}",
            "max_error={1:.2e}",
            lambda x: learned(x) & aged,
            errors,
        ),
    )
    return {family.name: family for family in families}


def list_rivals(steps: int, sites: Sequence[str]) -> list[Gated]:
    """Schedules that decide by the step alone."""
    schedules = {
        "interval every=2 warmup=1": Schedule.interval(steps, 2, warmup=1),
        f"interval every=2 warmup={WARMUP}": Schedule.interval(steps, 2, warmup=WARMUP),
        f"interval every=3 warmup={WARMUP}": Schedule.interval(steps, 3, warmup=WARMUP),
        f"linear warmup={WARMUP} max_age={MAX_AGE}": Schedule.linear(
            steps, WARMUP, max_age=MAX_AGE
        ),
    }
    return [
        Gated(name, "-", schedule, schedule.resolve(sites), is_gate=False)
        for name, schedule in schedules.items()
    ]
