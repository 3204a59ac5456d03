"""Forecasts and noise: what is in outputs, what forecasts make of it, and the job runs."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import noise
from benchmarks.noise import EXACT, ROUNDED, Setting, Watched, keep
from dqar_fx.schedule.forecast import amplify, weigh
from tests.benchmarks.command_errors import refuse
from tests.benchmarks.cut_pipeline import cut_pipeline

RUN = Setting("DDIM, leading", 30, "attention", 1.5)
STEPS, SIZE = 30, 4000


def curves(deviation, seed=0):
    """Two sites whose outputs are parabolas of the step, and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    bends = {path: torch.randn(3, SIZE, generator=generator) for path in "ab"}
    right = [
        {
            path: bend[0] + bend[1] * t / 9 + bend[2] * t * t / 99
            for path, bend in bends.items()
        }
        for t in range(STEPS)
    ]
    noisy = [
        {
            path: value + deviation * torch.randn(value.shape, generator=generator)
            for path, value in each.items()
        }
        for each in right
    ]
    return Watched(right, noisy)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_noise_is_amplified_as_weights_tell(order):
    row = curves(0.01).measure("made up", order, 2, RUN)
    kept = [20 - 3 * place for place in range(order + 1)]
    assert row.factor == pytest.approx(amplify(weigh("taylor", kept, 22, order)))
    assert row.amplified == pytest.approx(row.factor, rel=0.02)
    assert row.error_without <= row.error


def test_noise_that_is_large_makes_a_damped_forecast_nearer():
    row = curves(0.3).measure("made up", 3, 2, RUN)
    assert row.error_damped < row.error


def test_without_noise_a_damped_forecast_is_the_same():
    row = curves(0.0).measure(EXACT, 2, 2, RUN)
    assert (row.noise, row.amplified) == (0, None)
    assert row.error == row.error_without == row.error_damped


def test_a_run_too_short_for_a_forecast_has_no_row():
    assert curves(0.1).measure("made up", 3, 9, RUN) is None


def test_what_a_format_keeps_is_read_as_it_rounds():
    value = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(keep(value, "same"), value)
    assert torch.equal(keep(value, "fp16"), value.half().float())
    assert 0 < (keep(value, "int8") - value).abs().max() < value.abs().max() / 252


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("source", ["int8", pytest.param(ROUNDED, marks=pytest.mark.slow)])
def test_job_watches_all_sources_and_compares_runs(source, tmp_path, capsys):
    if source == ROUNDED:
        pytest.importorskip("torchao.quantization")
    model = cut_pipeline(tmp_path / "pipeline", num_layers=1)
    options = ["--quick", "--model", model, "--out", str(tmp_path / "out")]
    assert noise.main([*options, "--sources", EXACT, source]) == 0
    rows = read_lines(tmp_path / "out/noise.jsonl")
    assert [row["source"] for row in rows] == [EXACT] * 4 + [source] * 4
    assert [row["order"] for row in rows] == [0, 1, 2, 3] * 2
    assert {row["noise"] for row in rows[:4]} == {0}
    assert all(1e-3 < row["noise"] < 0.1 for row in rows[4:])
    assert len({row["change"] for row in rows}) == 1  # the same run is watched
    pictures = read_lines(tmp_path / "out/pictures.jsonl")
    found = [(row["source"], row["order"], row["strength"]) for row in pictures]
    plain = [(EXACT, order, 0.0) for order in range(4)]
    damped = [(source, order, strength) for order in (1, 2, 3) for strength in (0.0, 1.0)]
    assert found == [*plain, (source, 0, 0.0), *damped]
    assert all(math.isfinite(row["psnr_db"] + row["converged_db"]) for row in pictures)
    assert "to converged, dB" in capsys.readouterr().out


def test_job_refuses_an_unknown_source(tmp_path, capsys):
    code, said = refuse(noise.main, ["--sources", "int3", "--out", str(tmp_path)], capsys)
    assert code == 2
    assert "int3" in said
