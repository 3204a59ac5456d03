"""The cost model's command: its schedules, its table, and its errors."""

import json

import pytest

from benchmarks import cost_model
from benchmarks.cost_model import Row, list_schedules, make_schedules
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.tables import format_table
from dqar_fx import Schedule, transform
from tests.benchmarks.command_errors import refuse

pytestmark = pytest.mark.slow

TINY = ["--model", "geometry", "--layers", "2", "--width", "16", "--heads", "2"]
TINY += [
    "--tokens",
    "16",
    "--steps",
    "4",
    "--repeats",
    "2",
    "--rounds",
    "1",
    "--budget",
    "0.05",
]


@pytest.mark.parametrize("num_steps", [4, 20, 50])
def test_cost_model_schedules_differ(num_steps):
    sites = [str(site) for site in range(4)]
    tables = [each.resolve(sites) for each in make_schedules(num_steps, 4).values()]
    assert len(tables) == 8
    assert tables[0].reuse_ratio == 0
    assert all(table.reuse_ratio > 0 for table in tables[1:])
    assert all(table.num_steps == num_steps for table in tables)


def test_cost_model_schedules_that_are_drawn_differ_by_seed():
    sites = [str(site) for site in range(4)]
    one, again, other = (
        [each.resolve(sites) for each in list_schedules(20, 4, seed).values()]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    assert len(one) == cost_model.NUM_DRAWN
    assert all(len(set(table.rows)) > 1 for table in one)
    assert list_schedules(20, 4, None).keys() == make_schedules(20, 4).keys()


def test_cost_model_judges_schedules_whose_steps_are_mixed(denoiser_of_four):
    rows = cost_model.count_rows(denoiser_of_four, make_schedules(20, 4))
    unjudged = [name for name, row in rows.items() if not row.is_judged]
    assert unjudged == ["compute all", "every 3rd"]


@pytest.fixture
def denoiser_of_four():
    geometry = Geometry(layers=4, width=16, heads=2, tokens=16)
    schedule = Schedule.compute_all(20)
    return transform(geometry.build(), schedule, example_inputs=geometry.example_call())


def test_cost_model_predicts_and_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost_model, "set_up_compiler", lambda device: None)
    monkeypatch.setattr(cost_model, "LOWERING", None)
    assert cost_model.main([*TINY, "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["schedule"] for row in rows] == list(make_schedules(4, 2))
    assert all(len(row["regions_ms"]) == len(row["operators_ms"]) == 1 for row in rows)
    assert [len(each) for row in rows for each in row["measured_ms"]] == [2] * len(rows)
    assert all(row["cache_bytes"] == row["allocated_bytes"] for row in rows)
    printed = capsys.readouterr().out
    assert "predicted ms" in printed
    assert f"slot bytes: exact in {len(rows)} of {len(rows)}" in printed


def test_cost_model_table_has_medians_ranges_and_ratios_per_round():
    row = Row("linear", True, 0.5, 12.0, 1.0, 10**6, 10**6, [9.0, 8.0], [20.0, 20.0])
    row.measured_ms = [[10.0, 12.0, 8.0], [10.0, 10.0, 10.0]]
    assert (row.ratio, row.operators_ratio) == (pytest.approx(0.85), 2.0)
    text = format_table(cost_model.COLUMNS, [row])
    assert "10.0 (8.0-12.0)" in text
    assert "0.850 (0.800-0.900)" in text
    verdict = cost_model.format_verdict([row])
    assert "by regions: 0 of 1 judged schedules within 10%" in verdict
    assert "slot bytes: exact in 1 of 1" in verdict


def test_cost_model_bad_option_is_said_with_code_2(capsys, tmp_path):
    given = ["--out", str(tmp_path), "--steps", "1"]
    code, error = refuse(cost_model.main, given, capsys)
    assert code == 2
    assert "--steps: expected an integer of at least 4, found '1'" in error
