"""The command that searches schedules: what it writes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from benchmarks.optimise import Options, list_guidances, main
from dqar_fx import BranchTable, Front
from tests.benchmarks.command_errors import refuse


@pytest.mark.slow
def test_optimise_command_writes_tables_and_goes_on(tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path), "--speeds"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    files = sorted((tmp_path / "tables").glob("table_*.json"))
    front = Front.load(tmp_path / "tables")
    assert len(files) == len(front.points) > 0
    assert f"wrote {len(files)} tables" in first
    assert all(BranchTable.load(file).num_steps == 8 for file in files)
    assert (tmp_path / "front.png").stat().st_size > 1000
    tried = (tmp_path / "trials.jsonl").read_text()
    assert all("psnr_db" in json.loads(line) for line in tried.splitlines())
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "trials.jsonl").read_text() == tried


@pytest.mark.slow
def test_optimise_command_searches_at_the_speeds_alone(tmp_path):
    arguments = ["--quick", "--trials", "2", "--no-even", "--speeds", "1.5"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    speeds = [row["ms"] for row in json.loads((tmp_path / "front.json").read_text())["points"]]
    assert len(speeds) > 0
    tried = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(tried) < 14  # fewer than an even search over all speeds makes


def test_optimise_command_guidance_is_an_axis_only_where_there_is_some(tmp_path):
    given = ["--out", str(tmp_path), "--unconditional", "2", "5"]
    assert len(list_guidances(Options.read(given))) == 2
    assert list_guidances(Options.read([*given, "--guidance", "1"])) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speeds", "0.5"], "expected a number above 1"),
        (["--trials", "0"], "expected an integer of at least 1"),
        (["--lowering", "fast"], "invalid choice"),
    ],
)
def test_optimise_command_wrong_options_are_said_with_code_2(arguments, message, capsys):
    code, error = refuse(main, arguments, capsys)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-folder"], "is no pipeline"),
        (["--quick", "--sites", "nothing"], "selects no site"),
    ],
)
def test_optimise_command_unusable_input_ends_with_code_2(
    arguments, message, capsys, tmp_path
):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
