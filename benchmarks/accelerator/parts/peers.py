"""Other caches with the branch table that this one has, each in a process of its own."""

import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.accelerator.cases import Case, Finding, Stage
from benchmarks.accelerator.scales import Scale
from benchmarks.harness.rows import read_rows
from benchmarks.peers.job import main

SAME_TABLE = {
    "diffusers, TaylorSeer": "TaylorSeer N=3 O=1",
    "diffusers, PAB": "PAB range 2, timesteps all",
    "cache-dit, mask": "mask of every 3 + TaylorSeer O=1",
}
"""Peers whose decisions are a branch table; part of their rows' names."""


@dataclass(frozen=True)
class PeerRow:
    """What is read of a row of the comparison."""

    name: str
    speed_median: float | None
    error: str | None


def list_cases(scale: Scale) -> list[Case]:
    """A case for each peer that is installed."""
    needs = ("compiles",) if scale.keywords is None else ()
    found = [
        Case(name, "peers", partial(compare, setting), needs)
        for name, setting in SAME_TABLE.items()
        if find_spec(name.partition(",")[0].replace("-", "_"))
    ]
    return found[:1] if scale.is_sample else found


def compare(setting: str, stage: Stage) -> Finding:
    """Whether the same table runs at least as fast here as in a peer."""
    is_quick = "--quick" in stage.scale.peers
    modes = ("eager",) if is_quick else ("compiled", "compiled by block", "regional")
    only = [f"*{setting}, {mode}" for mode in modes]
    with tempfile.TemporaryDirectory() as folder:
        given = ["--device", str(stage.device), "--out", folder, *stage.scale.peers]
        main([*given, "--timeout", f"{max(stage.left_s, 1):.0f}", "--only", *only])
        rows = read_rows(Path(folder) / "rows.jsonl", PeerRow)
    speeds = {row.name: row.speed_median for row in rows if setting in row.name}
    ours = max((s for n, s in speeds.items() if n.startswith("dqar_fx") and s), default=None)
    theirs = max(
        (s for n, s in speeds.items() if not n.startswith("dqar_fx") and s), default=None
    )
    if ours is None or theirs is None:
        said = "; ".join(f"{row.name}: {row.error}" for row in rows if row.error)
        raise RuntimeError(f"not both sides ran: {speeds}; {said}")
    return Finding(ours >= theirs, f"{ours:.2f}x against {theirs:.2f}x", speeds)
