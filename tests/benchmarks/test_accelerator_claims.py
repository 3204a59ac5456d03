"""Verdicts: what rows make of claims, and what a rehearsal may not decide."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.accelerator.cases import Row
from benchmarks.accelerator.claims import CLAIMS, judge_claims
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.scales import FULL, SMALL
from tests.helpers.accelerator_runs import MACHINE

A100 = replace(MACHINE, device="cuda", processor="NVIDIA A100-SXM4-80GB")
T4, H200 = (replace(A100, processor=name) for name in ("Tesla T4", "NVIDIA H200"))
MPS = replace(MACHINE, device="mps", processor="Apple M2")
REPORT, EXACT, TIME, IDLE = (CLAIMS[n].text for n in (0, 1, 9, 10))
PREDICTED = {"A100": 1.2, "H100": 0.7, "H200": 0.9, "T4": 3.0}


def row(claim="exact", outcome="holds", machine=A100, word="equal", **values):
    return Row("some", word, claim, outcome, word, values, 1.0, None, "full", machine)


def raced(speed, low, high, machine=A100, **values):
    figures = {"speed": speed, "speed_low": low, "speed_high": high, "of_ceiling": speed / 1.6}
    figures |= {"predicted": PREDICTED, **values}
    return row("report", "measured", machine, f"{speed}x", **figures)


def verdict(text, rows):
    return next(each for each in judge_claims(rows) if each.claim == text)


def test_without_rows_all_claims_are_open():
    assert {each.verdict for each in judge_claims([])} == {"open"}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "not here"], "holds"),
        (["holds", "refuted", "failed"], "refuted"),
        (["holds", "failed"], "failed"),
        (["not here"], "open"),
        (["measured"], "measured"),
    ],
)
def test_a_claim_holds_if_all_its_rows_do(outcomes, expected):
    assert verdict(EXACT, [row(outcome=each) for each in outcomes]).verdict == expected


@pytest.mark.parametrize(
    ("machine", "spread", "expected"),
    [
        (A100, (1.58, 1.57, 1.59), "holds"),
        (A100, (1.56, 1.54, 1.58), "undecided"),
        (A100, (1.30, 1.28, 1.31), "refuted"),
        (T4, (1.30, 1.28, 1.31), "holds"),
        (H200, (1.30, 1.28, 1.31), "refuted"),
        (MPS, (1.30, 1.28, 1.31), "holds"),
    ],
)
def test_the_reports_speed_is_that_of_the_device(machine, spread, expected):
    found = verdict(REPORT, [raced(1.0, 1.0, 1.0, machine), raced(*spread, machine)])
    assert found.verdict == expected
    assert f"{spread[0]}x" in found.found


def test_a_rehearsal_decides_nothing():
    rows = [raced(9.0, 9.0, 9.0, MACHINE), row(machine=MACHINE)]
    found = judge_claims(rows)
    assert {each.verdict for each in found} == {"open"}
    assert verdict(EXACT, rows).found == "rehearsed only: holds, 1 of 1"


def test_figures_are_told_from_lowest_to_highest():
    rows = [raced(each, each, each) for each in (1.2, 1.44, 1.6)]
    found = verdict(TIME, rows)
    assert found.verdict == "measured"
    assert found.found.startswith("90% of the ceiling (median of 3); lowest 75%")


def test_largest_error_of_each_datasheet():
    (found,) = [e for e in judge_claims([raced(1, 1, 1, H200)]) if "Datasheets" in e.claim]
    assert "A100 +20%, H100 -30%, H200 -10%, T4 +200%; this device is H200" in found.found


def test_gaps_are_told_by_their_largest_share():
    rows = [
        raced(1, 1, 1, own_kernels=300.0, own_idle_ms=idle, own_step_ms=4.0)
        for idle in (0.1, 1.0)
    ]
    assert verdict(IDLE, rows).found.startswith("at most 25% of a step idle")
    assert verdict(IDLE, [raced(1, 1, 1)]).verdict == "open"


def test_every_claim_has_cases_and_every_case_a_claim():
    for scale in (FULL, SMALL):
        made = {case.claim for part in PARTS for case in part.list_cases(scale)}
        claimed = {key for claim in CLAIMS for key in claim.keys}
        assert made - claimed == {"device", "whole"}  # what belongs to no claim
        assert claimed <= made
