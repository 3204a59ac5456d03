"""What is claimed of accelerators, and what rows make of it.

Rows of a CPU are a rehearsal: whatever they say, a claim stays open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.accelerator.cases import FAILED, HOLDS, LACKING, MEASURED, REFUTED, Row
from dqar_fx.costs.profile import DATASHEETS

OPEN, UNDECIDED = "open", "undecided"
REPORTED = {"A100": 1.56, "T4": 1.25, "mps": 1.0}
"""The report's speeds at 98 % reuse of attention."""
ANY_DEVICE = "A100"
"""Whose speed is asked for on a device that the report does not name."""


@dataclass(frozen=True)
class Verdict:
    """What rows make of a claim.

    Attributes:
        claim: In words.
        verdict: ``holds``, ``refuted``, ``measured``, ``undecided``, ``failed`` or ``open``.
        found: What the rows say.
        rows: How many there are.
    """

    claim: str
    verdict: str
    found: str
    rows: int


Judge = Callable[[Sequence[Row]], tuple[str, str]]


def judge_all(rows: Sequence[Row]) -> tuple[str, str]:
    """Every row must hold."""
    wrong = [row for row in rows if row.outcome == REFUTED]
    failed = [row for row in rows if row.outcome == FAILED]
    held = sum(row.outcome == HOLDS for row in rows)
    if wrong:
        return REFUTED, f"{len(wrong)} of {len(rows)}: {wrong[0].case}: {wrong[0].word}"
    if failed:
        return FAILED, f"{len(failed)} of {len(rows)}: {failed[0].case}: {failed[0].word}"
    if not held:
        return OPEN if is_lacking(rows) else MEASURED, rows[-1].word
    return HOLDS, f"{held} of {held}"


def is_lacking(rows: Sequence[Row]) -> bool:
    """Whether the device could do none of them."""
    return all(row.outcome == LACKING for row in rows)


def judge_report(rows: Sequence[Row]) -> tuple[str, str]:
    """Whether the report's speed is reached, by the best pair of equal compilation."""
    raced = [row for row in rows if "speed" in row.values]
    if not raced:
        return judge_all(rows)
    best = max(raced, key=lambda row: row.values["speed"])
    target = find_target(best)
    low, high = best.values["speed_low"], best.values["speed_high"]
    found = f"best of {len(raced)}: {best.case}: {best.word}; the report has {target:.2f}x"
    if low >= target:
        return HOLDS, found
    return (REFUTED if high < target else UNDECIDED), found


def find_target(row: Row) -> float:
    """The report's speed on this device, or that of its fastest one."""
    names = f"{row.machine.processor} {row.machine.device}"
    return next((REPORTED[n] for n in REPORTED if n in names), REPORTED[ANY_DEVICE])


def judge_figures(rows: Sequence[Row]) -> tuple[str, str]:
    """Shares of the ceiling that were reached, from the lowest to the highest."""
    shares = {row.case: row.values["of_ceiling"] for row in rows if "of_ceiling" in row.values}
    if not shares:
        return judge_all(rows)
    low, high = min(shares, key=lambda c: shares[c]), max(shares, key=lambda c: shares[c])
    return MEASURED, (
        f"{median(shares.values()):.0%} of the ceiling (median of {len(shares)}); lowest "
        f"{shares[low]:.0%}, {low}; highest {shares[high]:.0%}, {high}"
    )


def judge_datasheets(rows: Sequence[Row]) -> tuple[str, str]:
    """The largest error of each datasheet; that of the device's own decides nothing."""
    predicted = [row.values["predicted"] for row in rows if "predicted" in row.values]
    if not predicted:
        return OPEN, "no row has a prediction"
    own = next((n for n in DATASHEETS if n in rows[0].machine.processor), "none of them")
    worst = {n: max((p[n] for p in predicted), key=lambda r: abs(r - 1)) for n in DATASHEETS}
    listed = ", ".join(f"{name} {ratio - 1:+.0%}" for name, ratio in worst.items())
    return MEASURED, f"largest errors: {listed}; this device is {own}"


def judge_launches(rows: Sequence[Row]) -> tuple[str, str]:
    """What a step waits for between kernels."""
    seen = [row for row in rows if "own_kernels" in row.values]
    if not seen:
        return OPEN, "no profiler saw kernels"
    most = max(seen, key=lambda row: row.values["own_idle_ms"] / row.values["own_step_ms"])
    share = most.values["own_idle_ms"] / most.values["own_step_ms"]
    return MEASURED, (
        f"at most {share:.0%} of a step idle: {most.case}, {most.values['own_kernels']:.0f} "
        f"kernels in {most.values['own_step_ms']:.2f} ms"
    )


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        text: In words.
        keys: Of the rows that it rests on.
        judge: What they make of it.
    """

    text: str
    keys: tuple[str, ...]
    judge: Judge = judge_all


CLAIMS = (
    Claim(
        "Reusing 98 % of attention is as fast as the report says: 1.56x on an A100, 1.25x on "
        "a T4, 1.00x on MPS",
        ("report",),
        judge_report,
    ),
    Claim("Computing everything equals the original, bit for bit", ("exact",)),
    Claim("Tables give what plain hooks give, bit for bit", ("oracle",)),
    Claim("Formats keep their stated error bounds, and flag what is not finite", ("formats",)),
    Claim("What is not finite is told of after a run, and no step waits for it", ("flags",)),
    Claim("Conditioning ahead of a run differs by 2e-5 at most, without a wait", ("ahead",)),
    Claim("Memory is what the plan says, with weights released", ("memory",)),
    Claim("No graph breaks, no recompilation, no wait in a step", ("steps",)),
    Claim("CUDA graphs replay over slots that stay where they are", ("replay",)),
    Claim("Time is saved as work is", ("report", "ceiling"), judge_figures),
    Claim("A step waits little between kernels", ("report", "ceiling"), judge_launches),
    Claim("The reference pipeline's main table runs on the device", ("pipeline",)),
    Claim("Times predicted from measured regions are right within 10 %", ("predicted",)),
    Claim("Datasheets predict times", ("report", "ceiling"), judge_datasheets),
    Claim("Compilation does not grow with layers or rows", ("compile",)),
    Claim("At one branch table no peer is faster", ("peers",)),
)


def judge_claims(rows: Sequence[Row]) -> list[Verdict]:
    """The verdict on each claim."""
    return [judge_claim(claim, rows) for claim in CLAIMS]


def judge_claim(claim: Claim, rows: Sequence[Row]) -> Verdict:
    """The verdict on one."""
    mine = [row for row in rows if row.claim in claim.keys]
    if not mine:
        return Verdict(claim.text, OPEN, "not measured", 0)
    verdict, found = claim.judge(mine)
    if mine[0].machine.device == "cpu":
        found, verdict = f"rehearsed only: {verdict}, {found}", OPEN
    return Verdict(claim.text, verdict, found, len(mine))
