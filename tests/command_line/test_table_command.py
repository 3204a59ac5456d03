"""``dqar-fx table``: tables of schedules and of files, and single cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqar_fx import Action, BranchTable, Schedule, prior_art
from dqar_fx.schedule.schedule_tiers import TIERS
from tests.helpers.config_files import config, expect_error, run

__all__ = ["config"]
ATTENTION = ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
ALL = [f"transformer_blocks.{block}.{part}" for block in range(2) for part in ("attn1", "ff")]


@pytest.mark.parametrize(
    ("argv", "schedule", "sites"),
    [
        (("linear", "--steps", 9), Schedule.linear(9), ATTENTION),
        (("linear", "--warmup", 2, "--full-from", 4, "--max-age", 3, "--steps", 9),
         Schedule.linear(9, 2, full_from=4, max_age=3), ATTENTION),
        (("interval", "--steps", 9), Schedule.interval(9, 2), ATTENTION),
        (("interval", "--every", 3, "--warmup", 3, "--forecast", 2, "--method", "chebyshev"),
         Schedule.interval(50, 3, warmup=3).forecast(2, "chebyshev"), ATTENTION),
        (("compute_all",), Schedule.compute_all(50), ATTENTION),
        (("CCRR",), Schedule.from_actions("CCRR"), ATTENTION),
        (("CCRR,CRRR", "--steps", 4), Schedule.from_actions(["CCRR", "CRRR"]), ATTENTION),
        (("fora", "--every", 4, "--steps", 9), prior_art.fora(9, 4), ALL),
        (("taylorseer", "--every", 3, "--warmup", 3, "--forecast", 2, "--steps", 9),
         prior_art.taylorseer(9, 3, 2, first=3), ALL),
        (("interval", "--steps", 4, "--sites", "transformer_blocks.0.*,feed_forward"),
         Schedule.interval(4, 2), [ALL[0], ALL[1], ALL[3]]),
    ],
)  # fmt: skip
def test_table_is_the_schedule(config, capsys, tmp_path, argv, schedule, sites):
    out = tmp_path / "table.json"
    code, printed, _ = run(capsys, "table", config, "--schedule", *argv, "--out", out)
    assert code == 0
    assert printed == f"{schedule.resolve(sites)}\n"
    assert BranchTable.load(out) == schedule.resolve(sites)


def test_saved_table_is_printed_and_is_a_schedule(config, capsys, tmp_path):
    saved, again = tmp_path / "saved.json", tmp_path / "again.json"
    Schedule.interval(9, 3, warmup=3).forecast(1).resolve(ALL[1:]).save(saved)
    printed = run(capsys, "table", saved)[1]
    assert printed == f"{BranchTable.load(saved)}\n"
    argv = ("table", config, "--schedule", saved, "--out", again)
    assert run(capsys, *argv)[:2] == (0, printed)
    assert BranchTable.load(again) == BranchTable.load(saved)


def test_saved_table_that_may_be_resampled_takes_other_steps(config, capsys, tmp_path):
    saved, again = tmp_path / "saved.json", tmp_path / "again.json"
    noise = np.geomspace(0.1, 9, 9)
    schedule = Schedule.from_actions("CCRRCRRCR", resample=True, noise=noise)
    schedule.resolve(ATTENTION).save(saved)
    argv = ("table", config, "--schedule", saved, "--steps", 13, "--out", again)
    assert run(capsys, *argv)[0] == 0
    assert BranchTable.load(again) == schedule.for_run(13).resolve(ATTENTION)
    Schedule.from_actions("CCRR").resolve(ATTENTION).save(saved)
    assert "is a schedule of 4 steps" in expect_error(
        capsys, "table", config, "--schedule", saved, "--steps", "13"
    )


def test_fitted_weights_of_a_saved_table_are_kept(config, capsys, tmp_path):
    saved, again = tmp_path / "saved.json", tmp_path / "again.json"
    plain = Schedule.interval(9, 3, warmup=3).forecast(1).resolve(ATTENTION)
    weights = np.zeros((9, 2, 2))
    weights[plain.actions == Action.FORECAST] = (1.75, -0.75)
    table = replace(plain, weights=weights)
    table.save(saved)
    assert run(capsys, "table", config, "--schedule", saved, "--out", again)[0] == 0
    assert BranchTable.load(again) == table != plain


@pytest.mark.parametrize("site", ["1", ATTENTION[1]])
def test_why_explains_a_cell(config, capsys, site):
    out = run(capsys, "table", config, "--steps", 9, "--why", f"8:{site}")[1]
    assert out == f"{Schedule.linear(9).resolve(ATTENTION).why(8, 1)}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--schedule", "CCRR", "--steps", "9"), "is a schedule of 4 steps"),
        (("--schedule", "RCC"), "no STORE comes before it"),
        (("--schedule", "CCRR,CRR"), "need one length"),
        (("--schedule", "compute_all", "--warmup", "2"), "--warmup says nothing"),
        (("--schedule", "interval", "--method", "taylor"), "give --forecast ORDER"),
        (("--schedule", "taylorseer", "--method", "taylor"), "--method says nothing"),
        (("--why", "99:0"), "no step 99"),
        (("--why", "0:attn"), "no site 'attn'"),
        (("--why", "0"), "expected a step and a site"),
        (("--out", "/no/such/folder/table.json"), "No such file"),
    ],
)
def test_table_wrong_input_is_one_line(config, capsys, argv, said):
    assert said in expect_error(capsys, "table", config, *argv)


def test_file_that_is_no_table_is_one_line(capsys, tmp_path):
    for content in ("{", '{"actions": 3}', "[1]"):
        (tmp_path / "table.json").write_text(content)
        said = expect_error(capsys, "table", tmp_path / "table.json")
        assert "no branch table can be read" in said


@pytest.mark.parametrize("name", TIERS)
def test_tier_is_a_schedule_for_the_sites_of_tiers(config, capsys, name):
    expected = f"{Schedule.tier(name, 16).resolve(ALL)}\n"
    for option in ("--tier", "--schedule"):
        assert run(capsys, "table", config, option, name, "--steps", 16) == (0, expected, "")


def test_tier_in_a_short_run_computes_everything_and_says_so(config, capsys):
    code, printed, told = run(capsys, "table", config, "--tier", "fast", "--steps", 5)
    assert (code, printed) == (0, f"{Schedule.compute_all(5).resolve(ALL)}\n")
    assert told == f"note: {Schedule.tier('fast', 5).notice}\n"


@pytest.mark.parametrize(
    "argv",
    [("--tier", "swift"), ("--tier", "fast", "--schedule", "interval"),
     ("--tier", "fast", "--every", 3)],
)  # fmt: skip
def test_tier_of_another_name_or_with_what_it_has_no_use_for_is_an_error(config, capsys, argv):
    expect_error(capsys, "table", config, *argv)
