"""What the report claims, and what a run's rows make of it: by rules, claim by claim."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.ablation import rules
from benchmarks.ablation.evidence import Evidence, Finding, Untestable
from benchmarks.ablation.rows import Row

CONFIRMED, REFUTED, UNTESTABLE = "confirmed", "refuted", "not testable here"
Rule = Callable[[Evidence], Finding]

CLAIMS: tuple[tuple[str, Rule], ...] = (
    ("DQAR infers at least 25 % faster and loses at most 1 FID.", rules.reach_target_speed),
    (
        "Or it needs at least 20 % less memory and loses at most 1 FID.",
        rules.reach_target_memory,
    ),
    ("full_dqar is 1.56x as fast on an A100.", rules.A100),
    ("quant_cache_only is 1.25x as fast on a T4.", rules.T4),
    ("On Apple's MPS nothing gets faster: 1.00x.", rules.MPS),
    ("A linear schedule with 5 warm-up steps reuses 98 %.", rules.reach_full_reuse),
    (
        "Keeping keys and values degrades quality, where keeping outputs does not.",
        rules.DEGRADE_BY_KEYS_VALUES,
    ),
    ("Keeping outputs preserves image quality.", rules.PRESERVE_BY_OUTPUTS),
    ("Keeping outputs has no quality risk, since reuse is exact.", rules.reuse_exactly),
    (
        "INT8 costs a little quality, so that FP16 is recommended for outputs.",
        rules.LOSE_BY_INT8,
    ),
    ("INT8 saves the most memory: half of FP16's.", rules.halve_bytes),
    ("Keys and values take about twice the memory of outputs.", rules.double_memory),
    (
        "Reusing keys and values saves their projections only, reusing outputs the whole "
        "attention.",
        rules.save_projections_only,
    ),
    ("Aggressive reuse (98 %) may degrade quality.", rules.DEGRADE_BY_FULL_REUSE),
)
"""In our own words, with the report's figures; each with the rule that decides it."""


@dataclass(frozen=True)
class Claim:
    """A claim and what became of it.

    Attributes:
        claim: In words, with the report's figure.
        verdict: ``"confirmed"``, ``"refuted"`` or ``"not testable here"``.
        measured: The figure of this run.
        why: One sentence.
    """

    claim: str
    verdict: str
    measured: str
    why: str


def judge_claims(rows: Sequence[Row]) -> list[Claim]:
    """All claims, judged by the rows of a run."""
    evidence = Evidence({row.name: row for row in rows})
    return [judge_claim(text, rule, evidence) for text, rule in CLAIMS]


def judge_claim(text: str, rule: Rule, evidence: Evidence) -> Claim:
    """One claim, judged by its rule."""
    try:
        finding = rule(evidence)
    except Untestable as reason:
        return Claim(text, UNTESTABLE, reason.measured, str(reason))
    verdict = CONFIRMED if finding.holds else REFUTED
    return Claim(text, verdict, finding.measured, finding.why)


def write_claims(claims: Sequence[Claim], path: Path) -> None:
    """Write all claims as one JSON list."""
    path.write_text(json.dumps([asdict(claim) for claim in claims], indent=2) + "\n")
