"""Schedule tiers are compared at equal work, summarised, and measured once."""

from __future__ import annotations

import json
from math import inf

import pytest

from benchmarks import tiers
from benchmarks.tiers import Row, gain_at, summarise
from dqar_fx.schedule.schedule_tiers import TIERS


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_tiers_are_measured_once_and_summarised(tmp_path, capsys, monkeypatch):
    options = ["--quick", "--out", str(tmp_path)]
    assert tiers.main(options) == 0
    rows, summary = read(tmp_path / "rows.jsonl"), read(tmp_path / "summary.jsonl")
    assert [row["tier"] for row in rows] == [None, *TIERS]
    plain, *others = rows
    assert (plain["own_db"], plain["evaluations"], plain["loss_db"]) == ("inf", 20, 0)
    for row, rule, line in zip(others, TIERS.values(), summary, strict=True):
        computed = len(rule.computed(20))
        assert computed < row["evaluations"] < computed + 0.5  # forecasts do little
        assert row["loss_db"] == pytest.approx(row["converged_db"] - plain["converged_db"])
        assert (line["tier"], line["computed"]) == (row["tier"], computed)
        assert line["own_low_db"] == line["own_high_db"] == row["own_db"]
    assert "fastest" in capsys.readouterr().out
    monkeypatch.setattr(tiers, "Bench", None)  # nothing is left to be measured
    assert tiers.main(options) == 0
    assert read(tmp_path / "rows.jsonl") == rows


def test_gain_is_read_off_the_line_between_steps_that_were_run():
    assert gain_at({6: 30.0, 10: 34.0}, 8.0, 35.5) == pytest.approx(3.5)
    assert gain_at({6: 30.0, 10: 34.0}, 5.9, 35.5) is None


def test_summary_has_the_range_of_models_and_solvers():
    rows = [
        Row("a", "DDIM", 10, "fast", 6.1, 40.0, 30.0, -1.0, None),
        Row("b", "DDIM", 10, "fast", 6.2, 42.0, 33.0, 0.5, 2.0),
        Row("b", "DDIM", 10, "quality", 10.0, inf, 33.0, 0.0, None),
        Row("b", "DDIM", 10, None, 10.0, inf, 33.0, 0.0, None),
    ]
    quality, fast = summarise(rows)
    assert (quality.tier, quality.computed, quality.own_low_db) == ("quality", 10, inf)
    assert (fast.tier, fast.computed, fast.evaluations) == ("fast", 6, 6.2)
    assert (fast.own_low_db, fast.own_high_db) == (40.0, 42.0)
    assert (fast.loss_low_db, fast.loss_high_db) == (-1.0, 0.5)
    assert (fast.gain_low_db, fast.gain_high_db) == (2.0, 2.0)
    assert quality.gain_low_db is None
