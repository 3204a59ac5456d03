"""What the comparison of gates prints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.gates.facts import Row
from benchmarks.gates.lineup import Gated
from benchmarks.harness.tables import NOTHING, Column, format_table
from dqar_fx import BranchTable, Calibration, Policy
from dqar_fx.calibration.policy import rank

SIMILAR = 0.05
"""Difference of reuse ratios up to which pictures are compared."""
COLUMNS = (
    Column("gate", "name"),
    Column("threshold", "setting"),
    Column("reuse", "reuse_ratio", ".3f"),
    Column("rows", "distinct_rows"),
    Column("ceiling", "ceiling", ".2f"),
    Column("PSNR dB", "psnr_db", ".1f"),
    Column("worst dB", "psnr_db_min", ".1f"),
)


def show_correlation(value: float) -> str:
    """With its sign, or a dash for none."""
    return NOTHING if math.isnan(value) else f"{value:+.2f}"


SITE_COLUMNS = (
    Column("site", "path"),
    Column("with own change", "with_change", show_correlation),
    Column("with denoiser's error", "with_error", show_correlation),
    Column("reuses tried", "num_tried"),
)


def format_gate(gated: Gated) -> str:
    """A gate's table, and why a few of its cells are what they are."""
    reasons = [gated.table.why(step, site) for step, site in choose_cells(gated.table)]
    return "\n".join([f"{gated.name}, {gated.setting}", str(gated.table), *reasons])


def choose_cells(table: BranchTable) -> list[tuple[int, int]]:
    """Cells to explain: the first reuse, the first computation after it, the last cell."""
    reused = np.argwhere(table.is_read)
    if not len(reused):
        return [(table.num_steps - 1, len(table.sites) - 1)]
    step, site = map(int, reused[0])
    computed = np.argwhere(~table.is_read[step:, site])
    again = [(step + int(computed[0, 0]), site)] if len(computed) else []
    last = (table.num_steps - 1, len(table.sites) - 1)
    return list(dict.fromkeys([(step, site), *again, last]))


def format_policy(policy: Policy) -> str:
    """How well the policy predicts what it has not learned from."""
    held = policy.held_out
    return (
        "learned policy, on cells that it has not learned from: rank correlation of predicted "
        f"and measured error {held['rank correlation']:.3f}, median ratio of the two "
        f"{held['median ratio']:.2f}"
    )


def format_entropy(calibration: Calibration) -> str:
    """Per site, how entropy goes along with the error of reuse."""
    return (
        "rank correlation of attention entropy with the change of the site's output since the "
        "step\nbefore, over steps; and with the error of the denoiser's output after a reuse, "
        f"any age:\n{format_table(SITE_COLUMNS, correlate(calibration))}"
    )


@dataclass(frozen=True)
class Correlated:
    """How a site's attention entropy goes along with what reuse does.

    Attributes:
        path: Of the site.
        with_change: Rank correlation with the change of its output since the step before.
        with_error: Rank correlation with the error of the denoiser's output after a reuse.
        num_tried: Reuses of which the error is known.
    """

    path: str
    with_change: float
    with_error: float
    num_tried: int


def correlate(calibration: Calibration) -> list[Correlated]:
    """The correlations of each site."""
    cells, rows = calibration.cells, []
    for site, path in enumerate(calibration.sites):
        mine, entropy = cells.site == site, calibration.entropy[:, site]
        change = rank_correlation(entropy[1:], calibration.change[1:, site, 0])
        error = rank_correlation(entropy[cells.step[mine]], cells.error[mine])
        rows.append(Correlated(path, change, error, int(mine.sum())))
    return rows


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's; NaN for fewer than three values, or where all are equal."""
    if len(a) < 3:
        return math.nan
    first, second = rank(a), rank(b)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def format_verdict(rows: Sequence[Row], gated: Sequence[Gated], target: float) -> str:
    """Whose pictures are nearest at about the reuse ratio that was asked for."""
    gates = {each.name for each in gated if each.is_gate}
    near = [row for row in rows if abs(row.reuse_ratio - target) <= SIMILAR]
    best = [
        max((row for row in near if (row.name in gates) == is_gate), key=lambda r: r.psnr_db)
        for is_gate in (True, False)
        if any((row.name in gates) == is_gate for row in near)
    ]
    named = [f"{row.name} ({row.psnr_db:.1f} dB at {row.reuse_ratio:.3f})" for row in best]
    if len(best) < 2:
        return f"nearest pictures at about {target:g} reuse: {''.join(named) or 'none'}"
    ahead = "a gate" if best[0].psnr_db > best[1].psnr_db else "no gate"
    return (
        f"at about {target:g} reuse (within {SIMILAR:g}), {ahead} is ahead of the schedules "
        f"that follow the\nstep alone: best gate {named[0]}, best schedule {named[1]}"
    )
