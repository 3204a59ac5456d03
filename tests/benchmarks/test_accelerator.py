"""The command for accelerators: its parts, shares, rows and errors, rehearsed on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.accelerator import cases, job, options, process
from benchmarks.accelerator.cases import Case, Finding, Part
from benchmarks.accelerator.job import Launcher, OwnOptions
from benchmarks.accelerator.ledger import ROWS, Ledger
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.parts.speed import MODES, SETTINGS
from benchmarks.accelerator.process import BROKEN, Measuring, ProcessOptions
from benchmarks.accelerator.scales import FULL, SMALL, choose_scale
from benchmarks.harness.machine import ROOT
from dqar_fx.program.compile_options import CompileOptions
from tests.benchmarks.command_errors import refuse
from tests.helpers.accelerator_runs import CPU, MACHINE, measure_quickly

TINY = ["identity/abilities", "identity/computes, DiT*, float32", "identity/int8, eager"]


def read(folder):
    return [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]


def outcomes(folder):
    return {f"{row['part']}/{row['case']}": row["outcome"] for row in read(folder)}


# ---- what there is ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [FULL, SMALL])
def test_names_of_cases_are_single_and_the_question_comes_first(scale):
    names = [(part.name, case.name) for part in PARTS for case in part.list_cases(scale)]
    assert len(names) == len(set(names))
    assert PARTS[0].name == "question"
    assert names[0][1].startswith("DiT-XL/2-256, batch")
    assert {case.claim for case in PARTS[0].list_cases(scale)} == {"report"}


def test_the_question_reuses_98_percent():
    schedule = SETTINGS["attention, 98 % reused"].schedule(FULL.steps)
    assert schedule.resolve(["one", "two"]).reuse_ratio == pytest.approx(0.98)


def test_full_scale_has_every_batch_mode_and_setting():
    names = [case.name for part in PARTS for case in part.list_cases(FULL)]
    for word in ("batch 2", "batch 8", "batch 32", "flux", "wan", "512", *SETTINGS):
        assert any(word in name for name in names), word
    for mode in MODES:
        assert any(f"({mode})" in name for name in names), mode


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_known_to_the_compiler(mode):
    is_replayed = CompileOptions.of({"unit": "regional", **MODES[mode]}).backend.replays
    assert is_replayed == ("graphs" in mode)


def test_a_cpu_rehearses_and_an_accelerator_does_not():
    assert choose_scale(CPU, False) is SMALL
    assert choose_scale(torch.device("cuda"), False) is FULL
    assert choose_scale(torch.device("cuda"), True) is SMALL


# ---- the measuring process ------------------------------------------------------------------


@pytest.fixture
def own_parts(monkeypatch):
    """Puts other parts in the place of all, for this test."""

    def put(*parts):
        monkeypatch.setattr(options, "PARTS", parts)
        return parts

    return put


def part_of(name, *runs, weight=1, needs=()):
    made = [Case(str(n), "exact", run, needs) for n, run in enumerate(runs)]
    return Part(name, weight, lambda _scale: made)


def fine(_stage):
    return Finding(True, "fine")


def raise_error(_stage):
    raise ArithmeticError("as a kernel would\nwith more lines")


def test_a_failure_is_a_row_with_its_traceback_and_the_others_go_on(own_parts, tmp_path):
    measure_quickly(tmp_path, own_parts(part_of("some", raise_error, fine)))
    first, second = read(tmp_path)
    assert (first["outcome"], second["outcome"]) == ("failed", "holds")
    assert first["word"] == "ArithmeticError: as a kernel would"
    assert "raise_error" in first["error"]


def test_what_a_device_lacks_is_a_row(own_parts, tmp_path):
    measure_quickly(tmp_path, own_parts(part_of("some", raise_error, needs=("graphs",))))
    (row,) = read(tmp_path)
    assert (row["outcome"], row["word"]) == ("not here", "the device has no graphs")


def test_rows_that_are_there_are_not_made_again(own_parts, tmp_path):
    made = []
    parts = own_parts(part_of("some", *[lambda _: made.append(1) or fine(_)] * 3))
    for _ in range(2):
        measure_quickly(tmp_path, parts)
    assert len(made) == len(read(tmp_path)) == 3


def test_a_part_ends_with_its_share_and_leaves_the_rest_to_others(
    own_parts, tmp_path, monkeypatch
):
    now = [0.0]
    for module in (process, cases):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def take_time(_stage):
        now[0] += 0.3
        return Finding(None, "took 0.3 s")

    own_parts(part_of("one", *[take_time] * 9), part_of("two", *[take_time] * 9, weight=3))
    ledger = Ledger(tmp_path)
    given = options.SharedOptions(device=CPU, out=tmp_path)
    Measuring(given, ledger, MACHINE, 2.8).run()  # of which 0.7 s are for the first
    parts = [row.part for row in ledger.read()]
    assert parts == ["one"] * 3 + ["two"] * 7


def test_cases_that_were_cut_off_come_last(own_parts, tmp_path):
    parts = own_parts(part_of("some", fine, fine))
    ledger = Ledger(tmp_path)
    ledger.begin("some/0")
    given = options.SharedOptions(device=CPU, out=tmp_path)
    ((_, missing),) = process.list_missing(given, ledger)
    assert [case.name for case in missing] == ["1", "0"]
    measure_quickly(tmp_path, parts)
    assert list(outcomes(tmp_path)) == ["some/1", "some/0"]


def test_a_broken_device_ends_the_process_behind_its_row(own_parts, tmp_path, monkeypatch):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(process, "is_broken", lambda device: True)
    monkeypatch.setattr(process.os, "_exit", end)
    with pytest.raises(Ended, match=str(BROKEN)):
        measure_quickly(tmp_path, own_parts(part_of("some", raise_error, fine)))
    assert outcomes(tmp_path) == {"some/0": "failed"}


def test_what_ended_a_process_fails_at_once_and_what_outran_its_time_at_the_second_time(
    own_parts, tmp_path
):
    own_parts(part_of("some", fine, fine))
    given, ledger = OwnOptions(device=CPU, out=tmp_path), Ledger(tmp_path)
    launcher, said = Launcher(given, ledger, MACHINE, 0.0), tmp_path / "said.txt"
    said.write_text("Fatal Python error: Segmentation fault")
    ledger.begin("some/0")
    assert launcher.note_end("RuntimeError: signal 11", said, 0)
    assert outcomes(tmp_path) == {"some/0": "failed"}
    said.write_text("Timeout (0:00:30)!")
    ledger.begin("some/1")
    assert launcher.note_end("code 1", said, 1)
    assert len(outcomes(tmp_path)) == 1
    ledger.begin("some/1")
    assert launcher.note_end("code 1", said, 2)
    assert outcomes(tmp_path)["some/1"] == "failed"
    assert not launcher.note_end("code 1", said, 3)  # nothing was begun


def test_tiny_cases_of_the_measuring_process(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    given = ["--device", "cpu", "--budget-s", "100", "--out", str(tmp_path), "--only", *TINY]
    before = torch.is_grad_enabled()
    assert process.main(given) == 0
    assert torch.is_grad_enabled() == before
    found = outcomes(tmp_path)
    assert set(found.values()) == {"measured", "holds"}
    assert len(found) == 3
    (row,) = [row for row in read(tmp_path) if row["case"] == "int8, eager"]
    assert 0 < row["values"]["of_bound"] <= 1
    assert (row["device"], row["scale"]) == ("cpu", "rehearsal")


# ---- the command ----------------------------------------------------------------------------


def test_command_lists_cases(capsys, tmp_path):
    given = ["--device", "cpu", "--list", "--only", "graphs", "--out", str(tmp_path)]
    assert job.main(given) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed
    assert all(line.startswith("graphs/") for line in listed)


def test_command_reports_what_is_there_and_what_is_not(own_parts, tmp_path, capsys):
    measure_quickly(tmp_path, own_parts(part_of("some", fine, raise_error)))
    own_parts(part_of("some", fine, raise_error, fine))
    rows = Ledger(tmp_path).read()
    given = OwnOptions(device=CPU, out=tmp_path)
    markdown, html = (p.read_text() for p in job.write_report(rows, given, MACHINE))
    for text in (markdown, html):
        assert "This is a rehearsal on a CPU" in text
        assert "1 cases were not reached (some/2)" in text
        assert "ArithmeticError" in text
        assert "raise_error" in text  # the traceback
    assert "<table>" in html


def test_command_refuses_rows_of_another_run(own_parts, tmp_path, capsys):
    measure_quickly(tmp_path, own_parts(part_of("some", fine)))
    capsys.readouterr()
    given = ["--device", "cpu", "--out", str(tmp_path)]
    code, error = refuse(job.main, given, capsys)
    assert code == 2
    assert "is of another run" in error
    assert "processor a processor there" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "--only: nothing is called nothing; the parts are"),
        (["--budget-s", "0"], "--budget-s: expected a number above 0"),
        (["--device", "nowhere"], "cannot use device 'nowhere'"),
    ],
)
def test_command_wrong_arguments_are_refused(arguments, message, tmp_path, capsys):
    code, error = refuse(job.main, [*arguments, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert message in error


def test_command_commit_is_what_git_says_or_what_is_given(tmp_path, monkeypatch):
    given = ProcessOptions(device=CPU, commit="d" * 40, out=tmp_path)
    machine = replace(MACHINE, commit=None)
    monkeypatch.setattr(options, "describe_machine", lambda device: machine)
    assert given.describe_machine().commit == "d" * 40
    monkeypatch.setattr(options, "describe_machine", lambda device: MACHINE)
    assert given.describe_machine().commit == "c" * 40


@pytest.mark.slow
def test_command_measures_in_a_process_of_its_own(tmp_path):
    words = ["-m", "benchmarks.accelerator", "--device", "cpu", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, *words, "--budget-s", "100", "--only", TINY[0]],
        cwd=ROOT.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert outcomes(tmp_path) == {"identity/abilities": "measured"}
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_rehearsal_runs_every_part(tmp_path):
    """All cases of the rehearsal, in as much time as they need here."""
    words = ["-m", "benchmarks.accelerator", "--device", "cpu", "--out", str(tmp_path)]
    for _ in range(2):  # what a loaded machine cuts off is made by the second
        subprocess.run(
            [sys.executable, *words, "--budget-s", "400"],
            cwd=ROOT.parent,
            capture_output=True,
            check=False,
        )
    found = outcomes(tmp_path)
    wanted = [f"{part.name}/{case.name}" for part in PARTS for case in part.list_cases(SMALL)]
    assert set(found) == set(wanted)
    # what depends on times may say anything on a machine with other work
    timed = ("costs/", "peers/")
    exact = {key: outcome for key, outcome in found.items() if not key.startswith(timed)}
    assert set(exact.values()) <= {"holds", "measured"}, exact
    assert "failed" not in found.values()
