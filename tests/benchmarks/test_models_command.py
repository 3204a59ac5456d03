"""The command of the models: its rows, its table and its errors."""

from __future__ import annotations

import json

import pytest

from benchmarks import models
from benchmarks.harness.tables import format_table
from benchmarks.harness.verdicts import Verdict
from benchmarks.models import COLUMNS, Row, try_out
from benchmarks.zoo import trials
from benchmarks.zoo.waiting import Waiting


@pytest.fixture
def one_trial(monkeypatch):
    """A single trial, whose verdict a test gives."""
    for name in [*trials.TRIALS]:
        monkeypatch.delitem(trials.TRIALS, name)
    monkeypatch.setattr(trials.Trial, "tier", "graph")
    monkeypatch.setattr(trials.Trial, "kinds", trials.Counter(attention=3))
    return lambda trial: monkeypatch.setitem(trials.TRIALS, "computes", trial)


def test_verdicts_are_words(one_trial):
    one_trial(lambda trial: Verdict(False, "2 of 4 steps"))
    row = try_out("DiTTransformer2DModel")
    assert row.verdicts == {"computes": "no: 2 of 4 steps"}
    assert (row.tier, row.attention_sites, row.block_sites) == ("graph", 3, 0)
    assert "| DiTTransformer2DModel " in format_table(COLUMNS, [row])


def test_failure_of_a_trial_is_noted_and_wrong(one_trial, capsys):
    one_trial(lambda trial: trial.nothing)
    row = try_out("DiTTransformer2DModel")
    assert row.verdicts == {"computes": "no"}
    assert row.error.startswith("AttributeError: ")
    assert "DiTTransformer2DModel, computes failed" in capsys.readouterr().err


def test_row_is_as_known_if_just_what_waits_is_wrong(monkeypatch):
    monkeypatch.setattr(
        models, "waiting", lambda: {"Some": Waiting(["blocks"], "no site", "a reason")}
    )
    right, wrong = {"computes": "yes: equal", "blocks": "no: x"}, {"blocks": "yes: equal"}
    assert Row("Some", verdicts=right).is_as_known
    assert not Row("Some", verdicts=wrong).is_as_known
    assert not Row("Other", verdicts=right).is_as_known


def test_unknown_class_is_refused(tmp_path, capsys):
    assert models.main(["--only", "nothing*", "--out", str(tmp_path)]) == 2
    assert "'DiTTransformer2DModel'" in capsys.readouterr().err


@pytest.mark.slow
def test_command_writes_a_row_per_class(tmp_path, capsys):
    assert models.main(["--only", "DiT*", "--out", str(tmp_path)]) == 0
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert {row[name] for name in ("computes", "attention", "blocks")} == {"yes: equal"}
    assert (row["tier"], row["attention_sites"], row["block_sites"]) == ("graph", 3, 3)
    assert "| DiTTransformer2DModel " in capsys.readouterr().out
