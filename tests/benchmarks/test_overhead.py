"""The time outside of regions: what is left when regions do nothing."""

from __future__ import annotations

import json

import pytest
import torch

import dqar_fx
from benchmarks import overhead
from benchmarks.harness.geometry import Geometry
from dqar_fx.program.lowering import Lowering
from tests.benchmarks.command_errors import refuse


def test_empty_regions_compute_nothing_and_are_gone_afterwards():
    geometry = Geometry(layers=2, width=16, heads=2, tokens=4)
    lower = Lowering.lower
    with overhead.empty_regions():
        denoiser = dqar_fx.transform(
            geometry.build(), dqar_fx.Schedule.interval(4, 2), compile="regional"
        )
        call = {"timestep": torch.tensor([9, 9]), "class_labels": geometry.labels()}
        with torch.no_grad():
            result = denoiser(geometry.draw_latent(), **call).sample
    assert not result.any()
    assert Lowering.lower is lower


def test_overhead_tells_calls_from_steps():
    found = overhead.measure("attention, every 2nd step", steps=6, repeats=1, depths=(2, 4))
    assert found.calls[4] - found.calls[2] == 2  # one call per block
    assert found.step_us.keys() == {2, 4}
    slope = (found.step_us[4] - found.step_us[2]) / 2
    assert found.per_call_us == pytest.approx(slope)


def test_overhead_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overhead, "LOWERINGS", ("eager",))  # nothing is compiled in a test
    out = str(tmp_path / "found")
    options = ["--steps", "6", "--repeats", "1", "--depths", "1", "2"]
    options += ["--tokens", "16", "--width", "32"]
    assert overhead.main([*options, "--out", out]) == 0
    text = (tmp_path / "found" / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    tiers = [(row["schedule"], row["capture"]) for row in rows]
    assert tiers == [(n, c) for n in overhead.SCHEDULES for c in ("graph", "blocks")]
    text = (tmp_path / "found" / "reused.jsonl").read_text()
    reused = [json.loads(line) for line in text.splitlines()]
    assert [row["pairs"] for row in reused] == [2 * 2] * 2  # two blocks, two steps behind
    assert {row["compile"] for row in reused} == {"eager"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in overhead.SCHEDULES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "4", "4"], "two different ones"),
        (["--steps", "4"], "--steps: expected an integer of at least 5"),
        (["--repeats", "0"], "--repeats: expected an integer of at least 1"),
    ],
)
def test_overhead_wrong_arguments_are_refused(arguments, message, tmp_path, capsys):
    code, error = refuse(overhead.main, [*arguments, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert message in error
