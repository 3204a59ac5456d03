"""Rules for what the report claims of picture quality.

One configuration is worse than another if its Frechet distance is larger in each seed group
and, in the mean, by more than the baseline's varies between seed groups.
"""

from benchmarks.ablation.configurations import (
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    MENDED_KV,
    QUANT,
    SCHEDULING,
)
from benchmarks.ablation.evidence import Evidence, Finding, Untestable

EXACT_DB = 50.0
"""PSNR from which two pictures are the same to the eye, and nearly to eight bits."""


def degrade_by_keys_values(evidence: Evidence) -> Finding:
    """K/V reuse is worse than output reuse at the same table."""
    difference = evidence.frechet_difference(KV, SCHEDULING)
    return Finding(
        holds=difference.is_worse,
        measured=f"{difference}; {evidence.describe_psnr(KV, SCHEDULING)}"
        f"{describe_mended(evidence, MENDED_KV, MENDED_FP16)}",
        why=f"At equal tables and format, K/V reuse is {difference.verdict} output reuse.",
    )


def preserve_by_outputs(evidence: Evidence) -> Finding:
    """Output reuse is not worse than no reuse."""
    difference = evidence.frechet_difference(SCHEDULING)
    return Finding(
        holds=not difference.is_worse,
        measured=f"{difference}; {evidence.describe_psnr(SCHEDULING)}",
        why=f"Output reuse with the linear schedule is {difference.verdict} no reuse.",
    )


def reuse_exactly(evidence: Evidence) -> Finding:
    """Output reuse gives the baseline's pictures."""
    quality = evidence.row(SCHEDULING).quality
    if quality.psnr_db is None or quality.ssim is None:
        raise Untestable("no pictures of the same seeds were compared.")
    return Finding(
        holds=quality.psnr_db >= EXACT_DB,
        measured=f"{evidence.describe_psnr(SCHEDULING)}, SSIM {quality.ssim:.3f}",
        why=(
            f"Without risk would be pictures equal to the baseline's, {EXACT_DB:.0f} dB or "
            "more; what is reused is the output of another step."
        ),
    )


def lose_by_int8(evidence: Evidence) -> Finding:
    """INT8 is worse than FP16 at the same table."""
    difference = evidence.frechet_difference(FULL, SCHEDULING)
    return Finding(
        holds=difference.is_worse,
        measured=f"{difference}; {evidence.describe_psnr(FULL, SCHEDULING)}"
        f"{describe_mended(evidence, MENDED, MENDED_FP16)}",
        why=f"At equal tables, INT8 is {difference.verdict} FP16.",
    )


def degrade_by_full_reuse(evidence: Evidence) -> Finding:
    """Reuse at every step is worse than the baseline."""
    difference = evidence.frechet_difference(QUANT)
    return Finding(
        holds=difference.is_worse,
        measured=f"{difference}; {evidence.describe_psnr(QUANT)}",
        why=f"Reusing step 0 to the end is {difference.verdict} no reuse.",
    )


def describe_mended(evidence: Evidence, name: str, other: str) -> str:
    """The same comparison where reuse does less harm, if it is in the run: decides nothing."""
    try:
        difference = evidence.frechet_difference(name, other)
    except Untestable:
        return ""
    psnr = evidence.describe_psnr(name, other)
    return f"; with max_age=3, which the report does not have, {difference}; {psnr}"
