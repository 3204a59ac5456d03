"""The verdicts on the report's claims follow from rows."""

import math
from dataclasses import replace

import pytest

from benchmarks.ablation import rules_cost, rules_quality
from benchmarks.ablation.claims import CLAIMS, CONFIRMED, REFUTED, UNTESTABLE, judge_claims
from benchmarks.ablation.configurations import (
    BASELINE,
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    QUANT,
    SCHEDULING,
)
from benchmarks.ablation.pairs import find_pairs
from benchmarks.ablation.rows import Row
from benchmarks.harness.machine import Machine
from benchmarks.quality.panel import Quality
from tests.benchmarks.ablation_runs import NAMES

MACHINE = Machine("cpu", "AMD EPYC", 2, 2, "2.13", "0.42", "0.1", None, None)
RUN = {"model": "reference/pipeline", "frechet_name": "FD-FashionCNN", "kv_share": 0.42}
ON_A100 = {
    "machine": replace(MACHINE, device="cuda", processor="NVIDIA A100-SXM4-40GB"),
    "run": RUN | {"model": "facebook/DiT-XL-2-256"},
}
ON_T4 = ON_A100 | {"machine": replace(MACHINE, device="cuda", processor="Tesla T4")}
ON_MPS = ON_A100 | {"machine": replace(MACHINE, device="mps", processor="Apple M3")}


def judged(psnr_db, *frechet, images=2100):
    return {"quality": Quality(images, psnr_db=psnr_db, ssim=0.9, frechet=frechet)}


def at_speed(speed):
    return {"speed_median": speed, "speed_min": speed, "speed_max": speed}


def make_rows(changes):
    """Rows of a made-up run of the claims' configurations; changes are by name."""
    known = {
        BASELINE: {"macs": 100, **judged(math.inf, 10.0, 10.2, 9.9)},
        SCHEDULING: {"macs": 50, "cache_bytes": 100, **judged(20.0, 10.1, 10.1, 10.0)},
        QUANT: {"cache_bytes": 51, **judged(9.0, 90.0, 91.0, 92.0)},
        FULL: {"cache_bytes": 51, "reuse_ratio": 0.68, **judged(20.0, 10.2, 10.0, 10.0)},
        KV: {"macs": 79, "cache_bytes": 200, **judged(15.0, 13.0, 13.1, 12.9)},
    }
    shared = {"parameter_bytes": 1000, "run": RUN, "machine": MACHINE, **at_speed(1.3)}
    shared |= changes.get("all", {})
    return [
        Row(name=name, steps=50, **shared | values | changes.get(name, {}))
        for name, values in known.items()
    ]


def verdict_of(rule, changes):
    claims = zip(judge_claims(make_rows(changes)), CLAIMS, strict=True)
    return next(claim.verdict for claim, (_, decides) in claims if decides is rule)


SAME = judged(20.0, 10.1, 10.1, 10.0)
FEW = judged(20.0, 10.1, 10.1, 10.0, images=1999)
ONE_GROUP = judged(20.0, 10.1)
FAR = judged(20.0, 12.0, 12.1, 12.2)
UNSURE = judged(20.0, 9.0, 12.1, 12.2)  # one seed group disagrees
SLIGHT = judged(20.0, 10.11, 10.11, 10.01)  # all agree, but it is less than noise

CASES = [
    (rules_cost.reach_target_speed, {}, CONFIRMED),
    (rules_cost.reach_target_speed, {"all": at_speed(1.2)}, REFUTED),
    (rules_cost.reach_target_speed, {SCHEDULING: FAR, FULL: FAR}, REFUTED),
    (rules_cost.reach_target_speed, {"all": {"speed_median": None}}, UNTESTABLE),
    (rules_cost.reach_target_speed, {FULL: FEW}, UNTESTABLE),
    (rules_cost.reach_target_memory, {}, REFUTED),
    (rules_cost.reach_target_memory, {FULL: {"cache_bytes": -200}}, CONFIRMED),
    (rules_cost.reach_target_memory, {FULL: {"cache_bytes": -200, **FAR}}, REFUTED),
    (rules_cost.reach_target_memory, {FULL: {"cache_bytes": None}}, UNTESTABLE),
    (rules_cost.A100, {}, UNTESTABLE),
    (rules_cost.A100, {"all": ON_A100 | at_speed(1.5)}, CONFIRMED),
    (rules_cost.A100, {"all": ON_A100 | at_speed(1.4)}, REFUTED),
    (rules_cost.A100, {"all": ON_A100 | {"run": RUN}}, UNTESTABLE),
    (rules_cost.T4, {}, UNTESTABLE),
    (rules_cost.T4, {"all": ON_T4 | at_speed(1.3)}, CONFIRMED),
    (rules_cost.T4, {"all": ON_T4 | at_speed(1.1)}, REFUTED),
    (rules_cost.T4, {"all": ON_A100}, UNTESTABLE),
    (rules_cost.MPS, {}, UNTESTABLE),
    (rules_cost.MPS, {"all": ON_MPS | at_speed(1.02)}, CONFIRMED),
    (rules_cost.MPS, {"all": ON_MPS | at_speed(1.2)}, REFUTED),
    (rules_cost.reach_full_reuse, {}, REFUTED),
    (rules_cost.reach_full_reuse, {FULL: {"reuse_ratio": 0.98}}, CONFIRMED),
    (rules_cost.reach_full_reuse, {FULL: {"error": "failed"}}, UNTESTABLE),
    (rules_cost.halve_bytes, {}, CONFIRMED),
    (rules_cost.halve_bytes, {FULL: {"cache_bytes": 56}}, REFUTED),
    (rules_cost.halve_bytes, {SCHEDULING: {"cache_bytes": None}}, UNTESTABLE),
    (rules_cost.double_memory, {}, CONFIRMED),
    (rules_cost.double_memory, {KV: {"cache_bytes": 100}}, REFUTED),
    (rules_cost.double_memory, {KV: {"error": "failed"}}, UNTESTABLE),
    (rules_cost.save_projections_only, {}, CONFIRMED),
    (rules_cost.save_projections_only, {KV: {"macs": 50}}, REFUTED),
    (rules_cost.save_projections_only, {KV: {"macs": None}}, UNTESTABLE),
    (rules_quality.degrade_by_keys_values, {}, CONFIRMED),
    (rules_quality.degrade_by_keys_values, {KV: SAME}, REFUTED),
    (rules_quality.degrade_by_keys_values, {KV: UNSURE}, REFUTED),
    (rules_quality.degrade_by_keys_values, {KV: SLIGHT}, REFUTED),
    (rules_quality.degrade_by_keys_values, {KV: FEW}, UNTESTABLE),
    (rules_quality.preserve_by_outputs, {}, CONFIRMED),
    (rules_quality.preserve_by_outputs, {SCHEDULING: FAR}, REFUTED),
    (rules_quality.preserve_by_outputs, {SCHEDULING: judged(20.0)}, UNTESTABLE),
    (rules_quality.reuse_exactly, {}, REFUTED),
    (rules_quality.reuse_exactly, {SCHEDULING: judged(60.0)}, CONFIRMED),
    (rules_quality.reuse_exactly, {SCHEDULING: judged(None)}, UNTESTABLE),
    (rules_quality.lose_by_int8, {}, REFUTED),
    (rules_quality.lose_by_int8, {FULL: FAR}, CONFIRMED),
    (
        rules_quality.lose_by_int8,
        dict.fromkeys(NAMES, ONE_GROUP),
        UNTESTABLE,
    ),
    (rules_quality.degrade_by_full_reuse, {}, CONFIRMED),
    (rules_quality.degrade_by_full_reuse, {QUANT: SAME}, REFUTED),
    (rules_quality.degrade_by_full_reuse, {BASELINE: {"error": "failed"}}, UNTESTABLE),
]


@pytest.mark.parametrize(("rule", "changes", "verdict"), CASES)
def test_claims_follow_from_rows(rule, changes, verdict):
    assert verdict_of(rule, changes) == verdict


def test_claims_each_have_cases_of_every_verdict():
    seen = {(rule, verdict) for rule, _, verdict in CASES}
    for _, rule in CLAIMS:
        assert {v for r, v in seen if r is rule} == {CONFIRMED, REFUTED, UNTESTABLE}


def test_claims_without_rows_are_untestable():
    assert {claim.verdict for claim in judge_claims([])} == {UNTESTABLE}


def test_claims_untestable_speed_still_tells_what_was_measured():
    claims = judge_claims(make_rows({}))
    (a100,) = [
        c for c, (_, rule) in zip(claims, CLAIMS, strict=True) if rule is rules_cost.A100
    ]
    assert a100.measured.startswith("full_dqar: 1.30x (1.30-1.30) on cpu (AMD EPYC)")
    assert a100.why == "The claim is about facebook/DiT-XL-2-256 on A100, the run is not."


def test_claims_tell_of_the_mended_table_where_it_is_in_the_run():
    rows = [
        *make_rows({}),
        Row(MENDED, 50, run=RUN, **judged(36.0, 10.3, 10.4, 10.2)),
        Row(MENDED_FP16, 50, run=RUN, **judged(37.0, 10.1, 10.3, 10.1)),
    ]
    (before, after) = (judge_claims(rows[:5]), judge_claims(rows))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    (int8,) = changed
    assert int8.claim.startswith("INT8 costs a little quality")
    assert (
        "with max_age=3, which the report does not have, FD-FashionCNN +0.133" in int8.measured
    )
    assert [c.verdict for c in before] == [c.verdict for c in after]


def test_find_pairs_are_of_equal_table_or_equal_cost():
    rows = [*make_rows({}), Row("40 steps, cost of full_dqar", 40)]
    found = [(row.name, other.name) for _, row, other in find_pairs(rows)]
    assert found == [(FULL, SCHEDULING), (KV, SCHEDULING), (FULL, rows[-1].name)]
