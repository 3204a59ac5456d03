"""How much of a saving is time: trajectories in lockstep, and the command around them."""

import json

import pytest
import torch

import dqar_fx
from benchmarks import saving
from benchmarks.harness import options
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.timing import run_lockstep
from benchmarks.saving import Saving, count_ratios, list_entries
from tests.benchmarks.command_errors import refuse

TINY = Geometry(layers=2, width=16, heads=2, tokens=16, batch=2)
SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--tokens", "16", "--steps", "6"]


def test_saving_is_the_median_over_trajectories():
    found = Saving("FORA N=3", 0.9, 0.5, (2.0, 1.6, 2.0))
    assert found.shares == pytest.approx([1.0, 0.75, 1.0])
    assert str(found).startswith("FORA N=3  ")
    assert "MACs 0.500, speed 2.000 (1.800 to 2.000), 100.0% of the MACs';" in str(found)
    assert str(found).endswith("saving turned into time 100.0% (87.5% to 100.0%): reaches 90%")
    assert str(Saving("x", 0.9, 0.5, (1.6,))).endswith("75.0% (75.0% to 75.0%): misses 90%")
    once = Saving("x", 0.8, 0.5, (1.62,), of_ceiling=True)
    assert once.reached == pytest.approx(0.81)
    assert str(once).endswith("reaches 80% of the ceiling")


def test_count_ratios_are_those_of_steps_that_compute():
    model = TINY.build()
    entries = list(list_entries(50).values())
    fora, first, second, once = count_ratios(model, TINY, entries)
    assert fora > 18 / 50  # FORA computes 18 of 50 steps; conditioning is always there
    assert fora == first == second
    assert fora < 0.5
    assert fora < once < 1  # attention alone


@torch.no_grad()
def test_run_lockstep_takes_turns():
    calls = []

    def model(name):
        return lambda latent, timestep, class_labels: calls.append((name, int(timestep[0])))

    took_s = run_lockstep([model("a"), model("b")], TINY, 3)
    assert [name for name, _ in calls] == ["a", "b", "b", "a", "a", "b"]
    assert [step for _, step in calls] == [999, 999, 500, 500, 0, 0]
    assert all(time > 0 for time in took_s)


@torch.no_grad()
def test_run_lockstep_starts_trajectories_anew():
    denoiser = dqar_fx.transform(TINY.build(), dqar_fx.Schedule.interval(4, 2), sites="all")
    for _ in range(2):
        run_lockstep([denoiser], TINY, 4)
    assert denoiser.program.table.num_steps == 4


@pytest.mark.slow
def test_main_writes_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    transform = dqar_fx.transform
    monkeypatch.setattr(
        dqar_fx, "transform", lambda *args, compile=None, **k: transform(*args, **k)
    )
    monkeypatch.setattr(saving, "set_up_compiler", lambda device: None)
    assert saving.main([*SMALL, "--repeats", "2", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    names = ["FORA N=3", "TaylorSeer N=3 O=1", "TaylorSeer N=3 O=2", "attention once"]
    assert [row["name"] for row in rows] == names
    assert [(row["bar"], len(row["speeds"]), row["steps"]) for row in rows] == [
        (0.9, 2, 6),
        (0.85, 2, 6),
        (0.85, 2, 6),
        (0.95, 2, 6),
    ]
    assert rows[0]["layers"] == 1
    out = capsys.readouterr().out
    assert "in lockstep; medians (quartiles):" in out
    assert "saving turned into time" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats: expected an integer of at least 1"),
        (["--steps", "3"], "--steps: expected an integer of at least 4, found '3'"),
        (["--tokens", "60"], "--tokens must be a square number, found 60"),
        (["--heads", "5"], "--width 384 is no multiple of --heads 5"),
        (["--threads", "0"], "--threads: expected an integer of at least 1"),
        (["--only", "PAB*"], "--only: there is no such schedule; there are FORA N=3, "),
        (["--out", "{file}"], "error: cannot write to "),
    ],
)
def test_main_bad_input_is_said_with_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = [a.replace("{file}", str(tmp_path / "file")) for a in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path)]
    code, error = refuse(saving.main, [*out, *given], capsys)
    assert code == 2
    assert message in error


def test_main_without_compiler_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    code, error = refuse(saving.main, ["--out", str(tmp_path)], capsys)
    assert code == 2
    assert error.startswith("error: no C++ compiler was found")
