"""Rules for what the report claims of speed, memory and arithmetic."""

import re
from dataclasses import dataclass

from benchmarks.ablation.configurations import (
    BASELINE,
    FULL,
    KV,
    QUANT,
    REPORTED,
    SCHEDULING,
)
from benchmarks.ablation.evidence import Evidence, Finding, Untestable
from benchmarks.harness.contenders import WARMUP

TARGET_SPEED, TARGET_MEMORY, MAX_LOSS = 1.25, 0.80, 1.0
REPORT_MODEL = "facebook/DiT-XL-2-256"
REPORT_REUSE = 0.98
NEAR = 0.05
"""A speed within 5 % of the claimed one is that speed."""
MAX_INT8_SHARE = 0.55
ABOUT_TWICE = (1.8, 2.2)
SHARE_TOLERANCE = 0.01


def reach_target_speed(evidence: Evidence) -> Finding:
    """One of the report's configurations is fast enough and near enough."""
    found = {
        name: (evidence.value(name, "speed_median"), evidence.frechet_difference(name))
        for name in REPORTED
    }
    good = [n for n, (s, d) in found.items() if s >= TARGET_SPEED and d.mean <= MAX_LOSS]
    machine = evidence.row(FULL).machine
    return Finding(
        holds=bool(good),
        measured="; ".join(f"{n}: {s:.2f}x, {d}" for n, (s, d) in found.items()),
        why=(
            f"On this {machine.device if machine else 'device'}, "
            f"{', '.join(good) or 'no configuration'} meets both. The metric is not FID, so "
            "that its unit is the report's is an assumption."
        ),
    )


def reach_target_memory(evidence: Evidence) -> Finding:
    """One of the report's configurations needs little enough memory and is near enough."""
    parameters = evidence.value(BASELINE, "parameter_bytes")
    ratios = {
        name: (parameters + evidence.value(name, "cache_bytes")) / parameters
        for name in REPORTED
    }
    small = [name for name, ratio in ratios.items() if ratio <= TARGET_MEMORY]
    good = [n for n in small if evidence.frechet_difference(n).mean <= MAX_LOSS]
    return Finding(
        holds=bool(good),
        measured="; ".join(f"{name}: {ratio:.3f}x" for name, ratio in ratios.items()),
        why=(
            "Parameters and cache, by parameters alone: a cache is kept on top of what the "
            "model needs anyway, whatever its format."
        ),
    )


@dataclass(frozen=True)
class ReachSpeedOn:
    """A configuration has a speed on a processor, with the report's model.

    Attributes:
        processor: Part of the device's name, or its type.
        name: Of the configuration.
        speed: As claimed.
        at_most: Whether being faster refutes the claim.
    """

    processor: str
    name: str
    speed: float
    at_most: bool = False

    def __call__(self, evidence: Evidence) -> Finding:
        """Compare, if this is the processor."""
        row = evidence.row(self.name)
        machine = row.machine
        where = "?" if machine is None else f"{machine.device} ({machine.processor})"
        if row.speed_median is None:
            raise Untestable(f"speed of {self.name} was not measured.")
        ceiling = "" if row.ceiling is None else f", ceiling by MACs {row.ceiling:.2f}x"
        measured = (
            f"{self.name}: {row.speed_median:.2f}x ({row.speed_min:.2f}-{row.speed_max:.2f}) "
            f"on {where}{ceiling}, reuse {row.reuse_ratio or 0:.0%}"
        )
        model = row.run.get("model")
        is_here = re.search(rf"\b{self.processor}\b", where) is not None
        if not is_here or model != REPORT_MODEL:
            raise Untestable(
                f"The claim is about {REPORT_MODEL} on {self.processor}, the run is not.",
                measured,
            )
        is_slow = row.speed_median < (1 - NEAR) * self.speed
        is_fast = self.at_most and row.speed_median > (1 + NEAR) * self.speed
        return Finding(
            holds=not is_slow and not is_fast,
            measured=measured,
            why=f"Compared with {self.speed:.2f}x, to within {NEAR:.0%}.",
        )


def reach_full_reuse(evidence: Evidence) -> Finding:
    """A linear schedule with the report's warm-up reuses as much as the report says."""
    ratio, steps = (evidence.value(FULL, each) for each in ("reuse_ratio", "steps"))
    bound = max(0, steps - WARMUP) / steps
    return Finding(
        holds=ratio >= REPORT_REUSE - 0.005,
        measured=f"{FULL}: {ratio:.1%} of steps and sites",
        why=(
            f"{WARMUP} of {steps} steps compute everything, so no such schedule exceeds "
            f"{bound:.0%}, and this one spreads from shallow to deep."
        ),
    )


def halve_bytes(evidence: Evidence) -> Finding:
    """INT8 takes about half of FP16, at the same table, scales included."""
    share = evidence.value(FULL, "cache_bytes") / evidence.value(SCHEDULING, "cache_bytes")
    return Finding(
        holds=share <= MAX_INT8_SHARE,
        measured=f"{share:.1%} of the bytes of FP16",
        why=f"Scales and flags included, at equal tables; the bound is {MAX_INT8_SHARE:.0%}.",
    )


def double_memory(evidence: Evidence) -> Finding:
    """Keys and values take about twice the bytes of outputs, at the same table and format."""
    ratio = evidence.value(KV, "cache_bytes") / evidence.value(SCHEDULING, "cache_bytes")
    low, high = ABOUT_TWICE
    return Finding(
        holds=low <= ratio <= high,
        measured=f"{ratio:.2f}x the bytes of outputs",
        why=f"Both in FP16 at equal tables; about twice is {low} to {high}.",
    )


def save_projections_only(evidence: Evidence) -> Finding:
    """What K/V reuse saves is the two projections, by multiply-accumulates."""
    baseline, kv, output = (evidence.value(n, "macs") for n in (BASELINE, KV, SCHEDULING))
    expected = evidence.row(KV).run.get("kv_share")
    if expected is None or output >= baseline:
        raise Untestable("the size of the model's attention is unknown.")
    share = (baseline - kv) / (baseline - output)
    return Finding(
        holds=abs(share - expected) <= SHARE_TOLERANCE,
        measured=f"{share:.1%} of the multiply-accumulates that output reuse saves",
        why=(
            f"Two projections are {expected:.1%} of attention with its four and its two "
            f"products; the ceilings are {baseline / kv:.2f}x and {baseline / output:.2f}x."
        ),
    )


MPS = ReachSpeedOn("mps", FULL, 1.00, at_most=True)
A100 = ReachSpeedOn("A100", FULL, 1.56)
T4 = ReachSpeedOn("T4", QUANT, 1.25)
