"""What forecasts are fitted to: the job runs, and writes what it prints."""

from __future__ import annotations

import json

import pytest

from benchmarks import forecast_aims
from tests.benchmarks.command_errors import refuse


def test_aims_are_compared_on_each_solver(tmp_path, capsys):
    assert forecast_aims.main(["--quick", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == len(forecast_aims.SOLVERS)
    said = capsys.readouterr().out
    for row in rows:
        assert 3 < row["evaluations"] < row["steps"] == 6
        assert row["to_teacher_db"] != row["to_model_db"] != row["polynomial_db"]
        assert f"{row['to_teacher_db']:.1f}" in said


@pytest.mark.parametrize("wrong", [["--order", "0"], ["--steps", "2"]])
def test_wrong_options_are_refused(wrong, tmp_path, capsys):
    code, said = refuse(forecast_aims.main, [*wrong, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert wrong[0] in said
