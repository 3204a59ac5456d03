"""Rules that decide what becomes of a claim of the report, from the rows of a run.

One configuration is worse than another if its Frechet distance is larger in each seed group
and, in the mean, by more than the baseline's varies between seed groups.
"""

import re
from dataclasses import dataclass

from benchmarks.ablation.configurations import (
    BASELINE,
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    MENDED_KV,
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
EXACT_DB = 50.0
"""PSNR from which two pictures are the same to the eye, and nearly to eight bits."""

# ---- speed, memory, arithmetic --------------------------------------------------------------


def reach_target_speed(evidence: Evidence) -> Finding:
    """One of the report's configurations is fast enough and near enough."""
    found = {
        name: (evidence.value(name, "speed_median"), evidence.frechet_difference(name))
        for name in REPORTED
    }
    good = [n for n, (s, d) in found.items() if s >= TARGET_SPEED and d.mean <= MAX_LOSS]
    return Finding(
        bool(good),
        "; ".join(f"{name}: {speed:.2f}x, {d}" for name, (speed, d) in found.items()),
        f"On this {evidence.row(FULL).machine.device}, "
        f"{', '.join(good) or 'no configuration'} meets both. The metric is not FID, so "
        "that its unit is the report's is an assumption.",
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
        bool(good),
        "; ".join(f"{name}: {ratio:.3f}x" for name, ratio in ratios.items()),
        "Parameters and cache, by parameters alone: a cache is kept on top of what the model "
        "needs anyway, whatever its format.",
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
        row, found = evidence.row(self.name), evidence.value(self.name, "speed_median")
        where = f"{row.machine.device} ({row.machine.processor})"
        ceiling = "" if row.ceiling is None else f", ceiling by MACs {row.ceiling:.2f}x"
        measured = (
            f"{self.name}: {found:.2f}x ({row.speed_min:.2f}-{row.speed_max:.2f}) "
            f"on {where}{ceiling}, reuse {row.reuse_ratio or 0:.0%}"
        )
        is_here = re.search(rf"\b{self.processor}\b", where) is not None
        if not is_here or row.run.model != REPORT_MODEL:
            raise Untestable(
                f"The claim is about {REPORT_MODEL} on {self.processor}, the run is not.",
                measured,
            )
        is_slow = found < (1 - NEAR) * self.speed
        is_fast = self.at_most and found > (1 + NEAR) * self.speed
        why = f"Compared with {self.speed:.2f}x, to within {NEAR:.0%}."
        return Finding(not is_slow and not is_fast, measured, why)


A100 = ReachSpeedOn("A100", FULL, 1.56)
T4 = ReachSpeedOn("T4", QUANT, 1.25)
MPS = ReachSpeedOn("mps", FULL, 1.00, at_most=True)


def reach_full_reuse(evidence: Evidence) -> Finding:
    """A linear schedule with the report's warm-up reuses as much as the report says."""
    ratio, steps = (evidence.value(FULL, each) for each in ("reuse_ratio", "steps"))
    bound = max(0, steps - WARMUP) / steps
    return Finding(
        ratio >= REPORT_REUSE - 0.005,
        f"{FULL}: {ratio:.1%} of steps and sites",
        f"{WARMUP} of {steps} steps compute everything, so no such schedule exceeds "
        f"{bound:.0%}, and this one spreads from shallow to deep.",
    )


def halve_bytes(evidence: Evidence) -> Finding:
    """INT8 takes about half of FP16, at the same table, scales included."""
    share = evidence.value(FULL, "cache_bytes") / evidence.value(SCHEDULING, "cache_bytes")
    return Finding(
        share <= MAX_INT8_SHARE,
        f"{share:.1%} of the bytes of FP16",
        f"Scales and flags included, at equal tables; the bound is {MAX_INT8_SHARE:.0%}.",
    )


def double_memory(evidence: Evidence) -> Finding:
    """Keys and values take about twice the bytes of outputs, at the same table and format."""
    ratio = evidence.value(KV, "cache_bytes") / evidence.value(SCHEDULING, "cache_bytes")
    low, high = ABOUT_TWICE
    return Finding(
        low <= ratio <= high,
        f"{ratio:.2f}x the bytes of outputs",
        f"Both in FP16 at equal tables; about twice is {low} to {high}.",
    )


def save_projections_only(evidence: Evidence) -> Finding:
    """What K/V reuse saves is the two projections, by multiply-accumulates."""
    baseline, kv, output = (evidence.value(n, "macs") for n in (BASELINE, KV, SCHEDULING))
    expected = evidence.row(KV).run.kv_share
    if output >= baseline:
        raise Untestable("output reuse saves no multiply-accumulates in this run.")
    share = (baseline - kv) / (baseline - output)
    return Finding(
        abs(share - expected) <= SHARE_TOLERANCE,
        f"{share:.1%} of the multiply-accumulates that output reuse saves",
        f"Two projections are {expected:.1%} of attention with its four and its two "
        f"products; the ceilings are {baseline / kv:.2f}x and {baseline / output:.2f}x.",
    )


# ---- quality --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compare:
    """One configuration is worse than another at the same table, or is not.

    Attributes:
        name: Of the one.
        other: Of the other.
        why: What is found, with a place for "farther from real pictures than", ...
        mended: Names of two that differ in the same where reuse does less harm: they are
            told if they are in the run, and decide nothing.
        is_worse: Whether the claim is that it is.
    """

    name: str
    other: str
    why: str
    mended: tuple[str, str] | None = None
    is_worse: bool = True

    def __call__(self, evidence: Evidence) -> Finding:
        """Compare."""
        difference = evidence.frechet_difference(self.name, self.other)
        psnr = evidence.describe_psnr(self.name, self.other)
        return Finding(
            difference.is_worse == self.is_worse,
            f"{difference}; {psnr}{self.describe_mended(evidence)}",
            self.why.format(difference.verdict),
        )

    def describe_mended(self, evidence: Evidence) -> str:
        """The same comparison where reuse does less harm, if it is in the run."""
        if self.mended is None:
            return ""
        try:
            difference = evidence.frechet_difference(*self.mended)
        except Untestable:
            return ""
        psnr = evidence.describe_psnr(*self.mended)
        return f"; with max_age=3, which the report does not have, {difference}; {psnr}"


def reuse_exactly(evidence: Evidence) -> Finding:
    """Output reuse gives the baseline's pictures."""
    quality = evidence.row(SCHEDULING).quality
    if quality.psnr_db is None or quality.ssim is None:
        raise Untestable("no pictures of the same seeds were compared.")
    return Finding(
        quality.psnr_db >= EXACT_DB,
        f"{evidence.describe_psnr(SCHEDULING)}, SSIM {quality.ssim:.3f}",
        f"Without risk would be pictures equal to the baseline's, {EXACT_DB:.0f} dB or more; "
        "what is reused is the output of another step.",
    )


DEGRADE_BY_KEYS_VALUES = Compare(
    KV,
    SCHEDULING,
    "At equal tables and format, K/V reuse is {} output reuse.",
    mended=(MENDED_KV, MENDED_FP16),
)
PRESERVE_BY_OUTPUTS = Compare(
    SCHEDULING,
    BASELINE,
    "Output reuse with the linear schedule is {} no reuse.",
    is_worse=False,
)
LOSE_BY_INT8 = Compare(
    FULL, SCHEDULING, "At equal tables, INT8 is {} FP16.", mended=(MENDED, MENDED_FP16)
)
DEGRADE_BY_FULL_REUSE = Compare(QUANT, BASELINE, "Reusing step 0 to the end is {} no reuse.")
