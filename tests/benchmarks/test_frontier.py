"""The frontier: the job runs, compares on the same pictures, and goes on where it stopped."""

from __future__ import annotations

import json

import pytest

from benchmarks import frontier
from tests.benchmarks.command_errors import refuse


def test_a_budget_is_searched_compared_and_timed(tmp_path, capsys):
    assert frontier.main(["--quick", "--out", str(tmp_path)]) == 0
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    parts = row["parts"]
    assert row["psnr_db"] == parts.get("all", parts["solver without reuse"])
    assert row["above_stock_db"] == pytest.approx(row["psnr_db"] - row["stock_db"])
    assert row["pattern"].startswith("C")
    assert set(row["pattern"]) <= set("CFR")
    assert row["predicted"] <= row["evaluations"] + 1e-6
    assert 0 < row["quartiles"][0] <= row["measured"] <= row["quartiles"][1]
    assert (tmp_path / "5" / "optimum.json").exists()
    said = capsys.readouterr().out
    assert f"{row['psnr_db']:.1f}" in said
    assert row["stock"] in said
    assert "grid alone" in said


@pytest.mark.parametrize("wrong", [["--evaluations", "1"], ["--trials", "0"]])
def test_wrong_budgets_are_refused(wrong, tmp_path, capsys):
    code, said = refuse(frontier.main, [*wrong, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert wrong[0] in said
