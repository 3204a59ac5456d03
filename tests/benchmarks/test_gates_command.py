"""The comparison of gates: thresholds that hit a reuse ratio, tables, files, errors."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from benchmarks.gates import job as gates_job
from benchmarks.gates.facts import Row
from benchmarks.gates.job import main
from benchmarks.gates.lineup import POLICY, Gated, list_families, reach_reuse
from benchmarks.gates.report import (
    choose_cells,
    correlate,
    format_verdict,
    rank_correlation,
)
from benchmarks.harness.contenders import WARMUP
from benchmarks.harness.store import file_name
from benchmarks.main_job.rows import write_out
from benchmarks.reference import PIPELINE
from dqar_fx import BranchTable, Calibration, Policy, Schedule, entropy_gate
from dqar_fx.calibration.calibration import Cells
from dqar_fx.calibration.fingerprint import Fingerprint
from tests.benchmarks.command_errors import refuse

pytestmark = pytest.mark.slow

STEPS, NUM_SITES = 40, 6
SITES = tuple(f"b.{i}.attn" for i in range(NUM_SITES))


@pytest.fixture(scope="module")
def calibration():
    """A made-up calibration in which the error of a reuse grows with age and with the step."""
    rng = np.random.default_rng(0)
    grid = np.argwhere(np.ones((STEPS, NUM_SITES, 4), bool))
    step, site, age = grid[grid[:, 0] > 3].T
    change = rng.uniform(0.01, 0.1, (STEPS, NUM_SITES, 4))
    for early in range(4):
        change[early, :, early:] = np.nan  # there is no such step before
    error = 1e-3 * (age + 1) * (1 + step) * rng.uniform(0.9, 1.1, len(step))
    none = np.full(len(step), np.nan)
    return Calibration(
        sites=SITES,
        snr=np.geomspace(1e-3, 1e3, STEPS),
        entropy=rng.uniform(0.4, 0.9, (STEPS, NUM_SITES)),
        change=change,
        cells=Cells(step, site, age + 1, error, none, none),
        fingerprint=Fingerprint("M", "", torch.empty(0)),
        samples=1,
    )


class Scheduler:
    """As much of a scheduler as the gates look at."""

    def set_timesteps(self, num_steps):
        self.timesteps = torch.arange(num_steps).flip(0)
        self.alphas_cumprod = torch.linspace(0.999, 0.001, num_steps, dtype=torch.float64)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command on a pipeline of two blocks: arguments, folder, exit code."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    shutil.copytree(PIPELINE, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    out = tmp_path_factory.mktemp("gates")
    arguments = ["--quick", "--steps", "30", "--model", str(folder)]
    return arguments, out, main([*arguments, "--out", str(out)])


def read_rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


# ---- the whole command ----------------------------------------------------------------------


def test_gates_quick_writes_a_row_and_a_table_per_gate(finished):
    _, out, code = finished
    rows = read_rows(out)
    assert code == 0
    assert len({row["name"] for row in rows}) == len(rows) == 13
    for row in rows:
        table = BranchTable.load(out / "tables" / f"{file_name(row['name'])}.json")
        again = Schedule.from_actions(row["schedule"]).resolve(table.sites)
        np.testing.assert_array_equal(again.actions, table.actions)
        assert row["reuse_ratio"] == table.reuse_ratio
        assert row["distinct_rows"] == len(table.rows)
        assert 1 < row["ceiling"] < 2
        assert 5 < row["psnr_db_min"] <= row["psnr_db"] < 120
    assert rows[0]["model"].endswith("/pipeline")
    assert rows[0]["calibration_seed"] not in rows[0]["seeds"]


def test_gates_quick_writes_what_dqar_fx_reads_again(finished):
    out = finished[1]
    calibration, policy = Calibration.load(out / "calibration"), Policy.load(out / "policy")
    assert calibration.sites == policy.sites
    assert calibration.num_steps == 30
    learned = BranchTable.load(out / "policy" / "table.json")
    assert learned == BranchTable.load(out / "tables" / "policy.json")


def test_gates_with_its_calibration_decides_the_same(finished, tmp_path, capsys, monkeypatch):
    def measure_nothing(pipe, task, gated):
        return [
            Row(each.name, each.setting, write_out(each.table), 0.5, 1, 1.0, 9.0, 9.0)
            for each in gated
        ]

    monkeypatch.setattr(gates_job, "measure", measure_nothing)
    arguments, out, _ = finished
    folder = out / "calibration"
    assert main([*arguments, "--calibration", str(folder), "--out", str(tmp_path)]) == 0
    printed, err = capsys.readouterr()
    assert f"the calibration is that of {folder}" in err
    assert "calibrate:" not in err
    assert [r["schedule"] for r in read_rows(tmp_path)] == [
        r["schedule"] for r in read_rows(out)
    ]
    for row in read_rows(out):
        assert f"\n{row['name']}, {row['setting']}\n" in f"\n{printed}"
    assert "30 steps x 2 sites" in printed
    assert "is in the window" in printed
    assert "learned policy, on cells that it has not learned from: rank corr" in printed
    assert "| transformer_blocks.1.attn1 |" in printed
    assert "| gate                      | threshold" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "--steps: expected an integer of at least 6, found '5'"),
        (["--reuse", "1.5"], "--reuse: expected a number between 0 and 1, found"),
        (["--reuse", "half"], "--reuse: expected a number between 0 and 1, found"),
        (["--out", "{file}"], "cannot write to "),
        (["--calibration", "{file}"], "cannot write to "),
        (["--model", "{file}"], "is no pipeline: expected"),
        (["--labels", "5000"], "--labels 5000: the pipeline has 10 classes, 0 to 9"),
        (["--calibration", "{damaged}"], ": no calibration can be read from "),
    ],
)
def test_gates_bad_input_is_said_with_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "calibration.json").touch()
    places = {"{file}": str(tmp_path / "file"), "{damaged}": str(damaged)}
    given = ["--out", str(tmp_path), *(places.get(a, a) for a in arguments)]
    code, error = refuse(main, given, capsys)
    assert code == 2
    assert message in error


def test_gates_calibration_of_another_model_or_length_is_refused(finished, tmp_path, capsys):
    arguments, out, _ = finished
    given = ["--calibration", str(out / "calibration"), "--out", str(tmp_path)]
    assert main([*arguments, "--steps", "9", *given]) == 2
    assert "has 30 steps, but --steps is 9: give the same" in capsys.readouterr().err
    assert main(["--quick", "--steps", "30", *given]) == 2
    assert "calibration" in capsys.readouterr().err.splitlines()[-1]


# ---- thresholds -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.1, 0.35, 0.5, 0.7])
def test_reach_reuse_hits_its_target(calibration, target):
    def gate(quantile):
        return entropy_gate(calibration, quantile=quantile)

    found = reach_reuse(gate, SITES, target, (1.0, 0.0))
    assert abs(gate(found).resolve(SITES).reuse_ratio - target) <= 2 / STEPS
    assert reach_reuse(gate, SITES, target, (1.0, 0.0)) == found


@pytest.mark.parametrize(("target", "reached"), [(0.05, 0.25), (0.4, 0.25), (0.95, 0.75)])
def test_reach_reuse_between_what_exists_gives_the_nearest(target, reached):
    def gate(threshold):
        return Schedule.from_actions("SRRR" if threshold > 0.3 else "CCSR")

    found = gate(reach_reuse(gate, SITES, target, (0.0, 1.0)))
    assert found.resolve(SITES).reuse_ratio == reached


def test_families_come_near_the_target_and_say_their_threshold(calibration):
    policy = Policy.fit(calibration, num_updates=60)
    families = list_families(Scheduler(), calibration, policy)
    for name, family in families.items():
        gated = family.settle(SITES, 0.5)
        assert abs(gated.table.reuse_ratio - 0.5) <= 0.1, name
        few, many = (family.gate(x).resolve(SITES).reuse_ratio for x in family.bounds)
        assert few < gated.table.reuse_ratio <= many, name
        value = float(gated.setting.partition("=")[2])
        assert math.isfinite(value)
    aged = families["policy & linear max_age=3"].settle(SITES, 0.5)
    linear = Schedule.linear(STEPS, WARMUP, max_age=3).resolve(SITES)
    assert aged.table.reuse_ratio <= linear.reuse_ratio
    assert not (aged.table.actions[:WARMUP] == 2).any()
    assert POLICY in families


# ---- the report -----------------------------------------------------------------------------


def test_rank_correlation_is_spearmans():
    up = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(up, np.exp(up)) == pytest.approx(1)
    assert rank_correlation(up, -(up**3)) == pytest.approx(-1)
    assert rank_correlation(up, np.array([1.0, 1.0, 2.0, 2.0])) == pytest.approx(0.894427191)
    assert math.isnan(rank_correlation(up, np.ones(4)))
    assert math.isnan(rank_correlation(up[:2], up[:2]))


def test_correlate_finds_entropy_that_follows_the_change(calibration):
    calibration.entropy[1:, 2] = 0.5 + calibration.change[1:, 2, 0]
    found = correlate(calibration)[2]
    assert (found.path, found.num_tried) == (SITES[2], (calibration.cells.site == 2).sum())
    assert found.with_change == pytest.approx(1)
    assert -1 <= found.with_error <= 1


@pytest.mark.parametrize(
    ("psnr_db", "said"),
    [
        (
            30.0,
            "within 0.05), a gate is ahead of the schedules that follow the\nstep alone: best",
        ),
        (
            20.0,
            "within 0.05), no gate is ahead of the schedules that follow the\nstep alone: ",
        ),
        (math.nan, "nearest pictures at about 0.5 reuse: plain (25.0 dB at 0.500)"),
    ],
)
def test_format_verdict_follows_the_data(psnr_db, said):
    schedule = Schedule.compute_all(2)
    table = schedule.resolve(["a"])
    gated = [Gated("gate", "-", schedule, table), Gated("plain", "-", schedule, table, False)]
    reuse = 0.9 if math.isnan(psnr_db) else 0.52
    rows = [
        Row("gate", "-", "CC", reuse, 1, 1.0, psnr_db, psnr_db),
        Row("plain", "-", "CC", 0.5, 1, 1.0, 25.0, 25.0),
    ]
    assert said in format_verdict(rows, gated, 0.5)


def test_choose_cells_without_reuse_takes_the_last():
    assert choose_cells(Schedule.compute_all(3).resolve(["a", "b"])) == [(2, 1)]
