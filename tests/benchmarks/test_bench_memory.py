"""benchmarks.memory: each variant in a process of its own, and what it says of it."""

from __future__ import annotations

import json

import pytest

from benchmarks import memory
from benchmarks.harness.geometry import Geometry
from tests.benchmarks.command_errors import refuse

pytestmark = pytest.mark.slow

SMALL = ["--layers", "2", "--width", "32", "--heads", "2", "--tokens", "4", "--steps", "3"]


@pytest.mark.slow
def test_memory_command_prints_and_writes(tmp_path, capsys):
    assert memory.main([*SMALL, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == list(memory.VARIANTS)
    assert [row["released_bytes"] > 0 for row in rows] == [False, True, True]
    assert len({row["parameter_bytes"] for row in rows}) == 1
    assert all(row["steps_bytes"] >= row["before_bytes"] > 2**20 for row in rows)
    for name in memory.VARIANTS:
        assert f"| {name}" in printed


def test_memory_counts_what_the_denoiser_counts():
    geometry = Geometry(layers=2, width=32, heads=2, tokens=4)
    found = memory.measure("disk", geometry, 3)
    assert found.parameter_bytes == sum(p.nbytes for p in geometry.build().parameters()) + (
        sum(b.nbytes for b in geometry.build().buffers())
    )
    assert 0 < found.released_bytes < found.parameter_bytes
    assert found.table_bytes == 3 * 2 * 4 * (2 * 6 * 32 + 2 * 32)


def test_memory_elsewhere_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    code, error = refuse(memory.main, [*SMALL, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert "known on Linux alone" in error


def test_memory_process_that_fails_says_why(tmp_path):
    with pytest.raises(
        RuntimeError, match="kept: RuntimeError: its process ended with code 2"
    ):
        memory.measure_apart("kept", ["--steps", "2", "--out", str(tmp_path)])
