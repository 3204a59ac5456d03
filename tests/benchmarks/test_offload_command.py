"""Offload with a denoiser and without one: the job runs and writes what it counts."""

from __future__ import annotations

import json

from benchmarks import offload


def test_offload_command_counts_what_comes_in(tmp_path, capsys):
    options = ["--steps", "4", "--repeats", "1", "--layers", "4", "--tokens", "16"]
    assert offload.main([*options, "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["place"] for row in rows] == ["memory"] * 3 + ["files"] * 3
    for native, computed, reusing in (rows[:3], rows[3:]):
        assert native["max_error"] == computed["max_error"] == 0 < reusing["max_error"]
        assert native["peak_bytes"] == computed["peak_bytes"] == reusing["peak_bytes"] > 0
        # hooks run around a block, whether it is reused or not
        assert native["brought_bytes"] == computed["brought_bytes"] == reusing["brought_bytes"]
    assert "at once, MB" in capsys.readouterr().out
