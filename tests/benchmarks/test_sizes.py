"""Many sizes in turn: the job counts, compares and writes its rows."""

from __future__ import annotations

import json

import pytest

from benchmarks import sizes


@pytest.mark.slow
def test_sizes_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "found"
    options = ["--only", "sd3", "--lengths", "1", "--again", "3", "--rounds", "1"]
    assert sizes.main([*options, "--out", str(out)]) == 0
    (row,) = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert (row["sizes"], row["captures"], row["calls"]) == (12, 2, 30)
    assert row["graphs"] > row["graphs_again"] == 0
    assert row["worst"] < 1e-4
    assert "graphs later" in capsys.readouterr().out


def test_sizes_are_all_there_once():
    drawn = sizes.draw_sizes(12)
    assert len(drawn) == len(set(drawn)) == 144
