"""Reuse on top of a fitted solver: the job runs, and compares at equal work."""

from __future__ import annotations

import json

import pytest

from benchmarks import solver_reuse
from benchmarks.harness.rows import write_rows
from benchmarks.solvers import FITTED, Row, Setting
from tests.benchmarks.command_errors import refuse


def test_a_pattern_is_compared_with_a_solver_of_as_much_work(tmp_path, capsys):
    run, other = (Setting("DPM-Solver++ (2M), 12 steps", 2, 1.5, each) for each in (2, 24))
    found = [
        Row(5, FITTED, FITTED, 30.0, run=run),
        Row(2, FITTED, FITTED, 20.0, run=run),
        Row(3, "DDIM", "leading", 1.0, run=run),
        Row(3, FITTED, FITTED, 99.0, run=other),  # fitted on other pictures
    ]
    write_rows(found, tmp_path / "rows.jsonl", {})
    out = str(tmp_path / "out")
    assert solver_reuse.main(["--quick", "--solvers", str(tmp_path), "--out", out]) == 0
    (row,) = map(json.loads, (tmp_path / "out" / "rows.jsonl").read_text().splitlines())
    work = row["evaluations"]
    assert 3 < work < 3.5  # a step that forecasts does little
    assert row["without_db"] == pytest.approx(20 + 10 * (work - 2) / 3)
    assert row["gain_db"] == pytest.approx(row["psnr_db"] - row["without_db"])
    assert f"{row['gain_db']:+.1f}" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["FCC", "C", "CXC"])
def test_what_is_no_pattern_is_refused(pattern, tmp_path, capsys):
    options = ["--patterns", pattern, "--out", str(tmp_path)]
    code, said = refuse(solver_reuse.main, options, capsys)
    assert code == 2
    assert pattern in said
