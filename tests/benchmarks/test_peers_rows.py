"""Rows of peers, their table and verdict, and what a cache holds: with made-up times."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import ModelHook
from torch import nn

from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.kinds import (
    BASE,
    COMPILED,
    DIFFUSERS,
    EAGER,
    FEWER,
    THEIRS,
    UNLIMITED,
)
from benchmarks.contenders.recipes import Untransformed
from benchmarks.contenders.records import Record
from benchmarks.harness.memory import Memory
from benchmarks.harness.rows import to_values
from benchmarks.harness.store import Piece, file_name
from benchmarks.peers.caches import count_held, watched
from benchmarks.peers.lineup import PAB, REGIONAL, WHOLE, WHOLE_PACKED
from benchmarks.peers.rows import Row, make_rows
from benchmarks.peers.table import format_notes, format_table
from benchmarks.peers.verdict import format_verdict, take_share
from benchmarks.quality.panel import Quality

RUN = {
    "model": "reference/pipeline",
    "geometry": None,
    "scheduler_class": "DDIMScheduler",
    "guidance": 1.5,
    "dtype": "float32",
    "samples": 8,
    "images": 700,
    "unit": "compiled",
    "device": "cpu",
    "processor": "abacus",
    "cores": 2,
    "threads": 2,
    "torch": "2",
    "diffusers": "0",
    "cache_dit": None,
    "frechet_name": "FD-FashionCNN",
}
MACHINE = {"dqar_fx": "0.1.0", "commit": "0123456789abcdef", "dirty": False}


def make_row(setting, family, mode, speed=None, **values):
    name = Contender(setting, family, 50, Untransformed(), mode).name
    ranges = {} if speed is None else {"speed_min": speed - 0.1, "speed_max": speed + 0.1}
    plain = {"tool": None, "steps": 50, "repeats": 5, "speed_median": speed}
    known = {"setting": setting, "mode": mode, "run": RUN}
    known |= {"family": family.title, "kind": family.kind}
    counts = {"graphs": 1, "breaks": 0, "recompiles": 0, "macs_ratio": 0.8}
    return Row(name=name, machine=MACHINE, **{**plain, **ranges, **known, **counts, **values})


def ours(mode, speed, **values):
    return make_row(f"dqar_fx as {PAB}", THEIRS, mode, speed, table=PAB, **values)


def peer(mode, speed=None, **values):
    return make_row(PAB, DIFFUSERS, mode, speed, table=PAB, **values)


BASE_ROW = make_row("untransformed", BASE, COMPILED, 1.0, psnr_db=math.inf, pictures=48)
ROWS = [
    BASE_ROW,
    peer(EAGER, 0.9, graphs=0),
    peer(COMPILED, 0.95, graphs=8),
    peer(UNLIMITED, 1.0, graphs=50, cache_bytes=1_500_000, first_peak_bytes=2_000_000_000),
    ours(EAGER, 1.1, graphs=0),
    ours(REGIONAL, 1.25, compile_s=12.34),
    ours(WHOLE, 1.2, judged=Quality(700, pooled_frechet=82.26, pooled_floors=(4.8,))),
    make_row("SeaCache", DIFFUSERS, EAGER, error="ValueError: no\nsuch"),
]


# ---- the verdict --------------------------------------------------------------------------


def test_share_is_through_the_unit_of_each_process():
    share = take_share(ours(WHOLE, 1.25), peer(COMPILED, 1.0))
    assert (share.median, share.low, share.high) == pytest.approx(
        (0.8, 0.9 / 1.35, 1.1 / 1.15)
    )


def test_verdict_bar_is_met():
    assert "met with 0.80, 0 breaks and 0 recompiles" in format_verdict(ROWS)[-1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ours(REGIONAL, 1.1), "missed with 0.91, 0 breaks and 0 recompiles"),
        (ours(REGIONAL, 1.2, recompiles=1), "missed with 0.83, 0 breaks and 1 recompiles"),
        (ours(REGIONAL, 1.2, breaks=2), "missed with 0.83, 2 breaks and 0 recompiles"),
    ],
)
def test_verdict_bar_is_missed(row, words):
    assert words in format_verdict([BASE_ROW, ROWS[3], row])[-1]


def test_verdict_tells_packed_weights_from_the_rest():
    lines = format_verdict([*ROWS, ours(WHOLE_PACKED, 1.6)])
    assert f"dqar_fx ({WHOLE_PACKED}) takes 0.62" in lines[0]
    assert lines[1] == "- Without packed weights (regional): 0.80 (0.67-0.96)."
    assert "met with 0.62" in lines[-1]
    plain = format_verdict([ROWS[3], ours(WHOLE_PACKED, 1.1), ours(WHOLE, 1.2)])
    assert not any("packed" in line for line in plain)


def test_verdict_says_what_is_not_comparable():
    faster = [peer(EAGER, 1.3), peer(COMPILED, 1.0, macs_ratio=0.7), ours(WHOLE, 1.2)]
    lines = format_verdict(faster)
    assert "- The work differs: MACs 0.800 here, 0.700 there." in lines
    assert any(line.startswith("- It is faster in eager mode: 1.08") for line in lines)
    unknown = format_verdict([peer(COMPILED, 1.0, macs_ratio=None), ours(WHOLE, 1.2)])
    assert any("MACs of both were not counted" in line for line in unknown)


@pytest.mark.parametrize(
    ("rows", "who"),
    [
        ([peer(COMPILED, 1.0)], "dqar_fx"),
        ([peer(COMPILED, error="x"), ours(WHOLE, 1.2)], PAB),
        ([peer(COMPILED, 1.0, note="reuses nothing"), ours(WHOLE, 1.2)], PAB),
        ([peer(EAGER, 1.0), ours(WHOLE, 1.2)], PAB),
    ],
)
def test_verdict_without_one_of_the_two_says_so(rows, who):
    first, last = format_verdict(rows)
    assert first == f"Same table as {PAB}: no compiled row of {who} was timed."
    assert last == "- bar (0.9 of its best compiled time): not measured."


def test_verdict_of_nothing_is_empty():
    assert format_verdict([BASE_ROW]) == []


# ---- the table ----------------------------------------------------------------------------


def cells(rows):
    lines = format_table(rows).splitlines()
    return {c[0]: c[1:] for c in ([x.strip() for x in ln.split("|")][1:-1] for ln in lines)}


def test_table_fills_its_columns():
    table = cells(ROWS)
    assert table["row"][-2:] == ["PSNR dB", "FD-FashionCNN"]
    assert table["SeaCache, eager"][7] == "failed"
    pab = table[f"{PAB}, {UNLIMITED}"]
    assert pab[1:4] == ["50", "0", "0"]
    assert pab[8:10] == ["2000 / -", "1.50"]
    assert table[f"dqar_fx as {PAB}, regional"][4] == "12.3"
    assert table[f"dqar_fx as {PAB}, whole"][-1] == "82.3"
    notes = format_notes(ROWS)
    assert "SeaCache (eager) failed: ValueError: no" in notes
    assert any("as many real ones have 4.8" in note for note in notes)
    assert any("commit 0123456789." in note for note in notes)


def test_table_of_a_geometry_has_errors_and_no_pictures():
    run = {**RUN, "geometry": "DiT-XL/2", "model": "DiT-XL/2"}
    rows = [make_row("untransformed", BASE, EAGER, 1.0, run=run, relative_error=2.5e-4)]
    table = cells(rows)
    assert table["row"][-1] == "error"
    assert table["untransformed, eager"][-1] == "2.5e-04"
    assert any(
        "no FD" in note and "50 in the place of 50" in note for note in format_notes(rows)
    )


# ---- rows ---------------------------------------------------------------------------------


@pytest.fixture
def peers():
    make = Untransformed()
    return [
        Contender("untransformed", BASE, 4, make),
        Contender("untransformed", BASE, 4, make, EAGER),
        Contender("3 steps", FEWER, 3, make),
        Contender("idle", DIFFUSERS, 4, make, EAGER, "x", "t"),
        Contender("idle", DIFFUSERS, 4, make, COMPILED, "x", "t"),
        Contender("late", DIFFUSERS, 4, make, EAGER, "x"),
    ]


@pytest.fixture
def records(peers, tmp_path):
    made = {each.name: Record(Piece(tmp_path / file_name(each.name), {})) for each in peers}
    latent = torch.randn(2, 4, 8, 8)
    for record in list(made.values())[:-1]:
        record.images = {0: latent, 1: latent + 1}
        record.times = {1: (8.0, 4.0), 2: (9.0, 3.0), 3: (8.0, 8.0)}
        record.facts = {"warmup_s": 20.0, "is_built": True, "graphs": 2, "hooked": 3}
    made["untransformed, eager"].facts |= {"macs": 100, "is_built": False}
    made["idle, eager"].facts |= {"macs": 60, "cache_bytes": 7, "later_peak_bytes": 9}
    return made


def test_make_rows_pairs_times_and_takes_what_was_compiled_off(peers, records):
    rows = {row.name: row for row in make_rows(peers, records, None, RUN)}
    assert "late, eager" not in rows  # has not run
    idle = rows["idle, compiled"]
    assert (idle.speed_median, idle.speed_min, idle.speed_max) == (2.0, 1.0, 3.0)
    assert (idle.compile_s, idle.trajectory_s, idle.step_ms) == (16.0, 4.0, 1000.0)
    assert idle.table == "t"
    assert rows["untransformed, eager"].compile_s is None
    assert rows["3 steps"].compile_s is None
    assert (rows["idle, eager"].cache_bytes, rows["idle, eager"].later_peak_bytes) == (7, 9)


def test_make_rows_share_the_macs_of_the_eager_mode(peers, records):
    rows = {row.name: row for row in make_rows(peers, records, None, RUN)}
    ratios = [row.macs_ratio for row in rows.values()]
    assert ratios == [1.0, 1.0, 0.75, 0.6, 0.6]


def test_make_rows_measure_the_error_of_latents(peers, records):
    records["idle, compiled"].images = {0: records["idle, compiled"].images[0] * 1.01}
    rows = {row.name: row for row in make_rows(peers, records, None, RUN)}
    assert rows["idle, compiled"].relative_error == pytest.approx(0.01, rel=1e-3)
    assert rows["idle, compiled"].note is None
    assert rows["idle, eager"].note == (
        "is attached without an error, but reuses nothing (3 modules have a hook)"
    )
    assert rows["untransformed, eager"].note is None
    assert rows["idle, compiled"].psnr_db is None


def test_row_json_is_flat_and_strict():
    values = to_values(ROWS[3])
    assert (values["cache_bytes"], values["table"], values["kind"]) == (
        1_500_000,
        PAB,
        "peer",
    )
    assert values["processor"] == "abacus"
    assert to_values(BASE_ROW)["psnr_db"] == "inf"


# ---- memory -------------------------------------------------------------------------------


class State(ModelHook):
    """A hook that keeps tensors, as those of diffusers do."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept


State.__module__ = "diffusers.hooks.of_a_test"


def hooked_model(kept):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0]._diffusers_hook = SimpleNamespace(hooks={"own": State(kept)})
    return model


def test_count_held_counts_each_storage_once():
    base = torch.zeros(100)
    kept = {
        "a": [base, base[:10]],
        "b": (torch.zeros(5, dtype=torch.float16), nn.Linear(9, 9)),
    }
    assert count_held(hooked_model(kept)) == 400 + 10


def test_count_held_of_no_cache_is_none():
    assert count_held(nn.Linear(2, 2)) is None


def test_watched_looks_after_each_call():
    kept = []
    model = hooked_model(kept)
    model[0].register_forward_hook(lambda *_: kept.append(torch.zeros(1)))
    with watched(Entrant(model)) as held:
        for _ in range(2):
            model(torch.zeros(1, 2))
    assert held == [4, 8]
    assert not model._forward_hooks


def test_memory_is_above_its_mark():
    memory = Memory(torch.device("cpu"))
    memory.start()
    block = torch.ones(40_000_000)  # touched: 160 MB
    assert memory.above() > 100e6
    del block
    assert memory.mark > 0
