"""The cost model's command: its schedules, its table, and its errors."""

import json

import pytest

from benchmarks import cost_model
from benchmarks.cost_model import Row, make_schedules

TINY = ["--model", "geometry", "--layers", "2", "--width", "16", "--heads", "2"]
TINY += ["--tokens", "16", "--steps", "4", "--repeats", "1", "--budget", "0.05"]


@pytest.mark.parametrize("num_steps", [4, 20, 50])
def test_cost_model_schedules_differ(num_steps):
    sites = [str(site) for site in range(4)]
    tables = [each.resolve(sites) for each in make_schedules(num_steps, 4).values()]
    assert len(tables) == 7
    assert tables[0].reuse_ratio == 0
    assert all(table.reuse_ratio > 0 for table in tables[1:])
    assert all(table.num_steps == num_steps for table in tables)


def test_cost_model_predicts_before_it_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost_model, "set_up_compiler", lambda device: None)
    monkeypatch.setattr(cost_model, "LOWERING", None)
    assert cost_model.main([*TINY, "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["schedule"] for row in rows] == list(make_schedules(4, 2))
    assert all(row["predicted_ms"] > 0 and len(row["measured_ms"]) == 1 for row in rows)
    assert "predicted ms" in capsys.readouterr().out


def test_cost_model_table_has_medians_and_ranges():
    row = Row("linear", 0.5, 12.0, 1.0, 1.2, 10**6, [11.0, 10.0, 15.0])
    text = cost_model.format_table([row])
    assert "11.0 (10.0-15.0)" in text
    assert f"{12 / 11:.3f}" in text


def test_cost_model_bad_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        cost_model.main(["--steps", "1"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
