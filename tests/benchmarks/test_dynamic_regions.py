"""Regions for all sizes against regions for one: the job runs and writes its rows."""

from __future__ import annotations

import json

from benchmarks import dynamic_regions


def test_dynamic_regions_command_prints_and_writes(tmp_path, capsys):
    out = str(tmp_path / "found")
    options = ["--steps", "3", "--repeats", "1", "--layers", "2", "--tokens", "16"]
    assert dynamic_regions.main([*options, "--backend", "eager", "--out", out]) == 0
    text = (tmp_path / "found" / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["subject"].split(",")[0] for row in rows] == ["DiT", "Flux"]
    assert all(row["pairs"] == 1 and row["ratio"] > 0 for row in rows)
    assert "all sizes, ms" in capsys.readouterr().out
