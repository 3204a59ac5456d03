"""The command of the pipelines: its rows, its table and its errors."""

from __future__ import annotations

import json

import pytest

from benchmarks import pipelines
from benchmarks.harness.verdicts import Verdict
from benchmarks.pipelines import Row, try_out
from benchmarks.stock import checks
from benchmarks.stock.stock import Stock


def make_nothing():
    raise RuntimeError("no pipeline")


@pytest.fixture
def one_check(monkeypatch):
    """A single check, whose verdict a test gives."""
    for name in [*checks.CHECKS]:
        monkeypatch.delitem(checks.CHECKS, name)
    return lambda check: monkeypatch.setitem(checks.CHECKS, "exact", check)


def test_verdicts_are_words(one_check):
    one_check(lambda trial: Verdict(False, "differs by 1"))
    row = try_out(Stock("some", make_nothing, lambda pipe, seed: pipe))
    assert row.verdicts == {"exact": "no: differs by 1"}
    assert not row.is_right


def test_failure_of_a_check_is_noted_and_wrong(one_check, capsys):
    one_check(lambda trial: trial.plain)
    row = try_out(Stock("some", make_nothing, lambda pipe, seed: pipe))
    assert row.verdicts == {"exact": "no"}
    assert row.error == "RuntimeError: no pipeline"
    assert "some, exact failed" in capsys.readouterr().err


def test_row_is_right_if_each_verdict_is():
    assert Row("some", verdicts={"exact": "yes: equal", "rows": "yes: 8 of 8"}).is_right
    assert not Row("some", verdicts={"exact": "yes: equal", "rows": "no: 7 of 8"}).is_right


def test_unknown_pipeline_is_refused(tmp_path, capsys):
    assert pipelines.main(["--only", "nothing*", "--out", str(tmp_path)]) == 2
    assert "'SD3, img2img'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_command_writes_a_row_per_pipeline(tmp_path, capsys):
    assert pipelines.main(["--only", "DiT, DDIM", "--out", str(tmp_path)]) == 0
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert {row[name] for name in checks.CHECKS} >= {"yes: equal", "yes: 10 of 10"}
    assert (row["sites"], row["calls"], row["error"]) == (3, 10, None)
    assert "| DiT, DDIM " in capsys.readouterr().out
