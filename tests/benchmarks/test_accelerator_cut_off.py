"""Runs that are cut off at any moment: rows are whole, none is made twice, none is lost."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.accelerator.ledger import BEGUN, ROWS, Ledger
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import ROOT
from tests.helpers import accelerator_runs
from tests.helpers.accelerator_runs import NUM_CASES, measure_quickly

NUM_CUTS, NUM_COMMAND_CUTS = 20, 5
ONLY = ["identity", "graphs"]


@pytest.fixture(scope="module")
def forks():
    """Processes that have imported all and share nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([accelerator_runs.__name__])
    return context


def keys_of(text):
    return [f"{row['part']}/{row['case']}" for row in map(json.loads, text.splitlines())]


def test_a_run_that_is_killed_again_and_again_has_each_row_once(forks, tmp_path):
    random.seed(0)
    path, counts = tmp_path / ROWS, []
    for _ in range(NUM_CUTS):
        begins = forks.Event()
        given = {"folder": str(tmp_path), "begins": begins}
        process = forks.Process(target=measure_quickly, kwargs=given)
        process.start()
        assert begins.wait(60)
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        process.join()
        with Ledger(tmp_path).locked(waits=True):
            counts.append(len(keys_of(path.read_text())))
    assert counts == sorted(counts)
    measure_quickly_in(forks, tmp_path)
    keys = keys_of(path.read_text())
    assert len(keys) == len(set(keys)) == NUM_CASES
    assert len(set(counts)) > 3, f"cut off at several places, not {counts}"


def measure_quickly_in(forks, folder):
    process = forks.Process(target=measure_quickly, args=(str(folder),))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("name", [ROWS, BEGUN])
def test_half_a_line_is_cut_off(name, tmp_path):
    path = tmp_path / name
    path.write_text('{"part": "one"}\n{"part": "tw')
    with Ledger(tmp_path).locked(waits=True):
        assert path.read_text() == '{"part": "one"}\n'


def test_who_writes_is_alone(tmp_path):
    refused = pytest.raises(InputError, match="another process writes")
    with Ledger(tmp_path).locked(waits=False), refused, Ledger(tmp_path).locked(waits=False):
        pass
    with Ledger(tmp_path).locked(waits=False):
        pass


def wait_for_growth(path, process):
    """Until a process that was started has begun something, or has found nothing to do."""
    before = path.stat().st_size if path.exists() else 0
    while process.poll() is None:
        if path.exists() and path.stat().st_size != before:
            return
        time.sleep(0.02)


def command(folder, budget_s):
    words = ["-m", "benchmarks.accelerator", "--device", "cpu", "--out", str(folder)]
    words += ["--budget-s", str(budget_s), "--only", *ONLY]
    return [sys.executable, *words]


@pytest.mark.slow
def test_the_command_killed_at_random_moments_goes_on(tmp_path):
    """SIGKILL and SIGTERM by turns; what was left behind ends by itself."""
    random.seed(1)
    for number in range(NUM_COMMAND_CUTS):
        process = subprocess.Popen(
            command(tmp_path, 120),
            cwd=ROOT.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_growth(tmp_path / BEGUN, process)
        time.sleep(random.uniform(0, 3))
        process.send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        process.wait()
    ended = subprocess.run(
        command(tmp_path, 300), cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    keys = keys_of((tmp_path / ROWS).read_text())
    assert len(keys) == len(set(keys))
    assert f"{len(keys)} rows" in ended.stdout
    assert "cases were not reached" not in ended.stdout
    rows = map(json.loads, (tmp_path / ROWS).read_text().splitlines())
    assert {row["outcome"] for row in rows} == {"holds", "measured"}
    assert ended.returncode == 0, ended.stderr[-2000:]
