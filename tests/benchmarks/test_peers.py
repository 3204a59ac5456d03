"""The comparison with peers: who takes part, processes, going on, and wrong input."""

import json
import subprocess
import sys

import pytest
import torch
from torch._inductor import config

from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.kinds import BASE, BLOCKS, COMPILED, EAGER, FROZEN, STOCK, UNLIMITED
from benchmarks.contenders.recipes import Frozen, Repeated
from benchmarks.contenders.records import Plan, Record
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.store import file_name
from benchmarks.peers import duel, lineup, options
from benchmarks.peers.job import Launcher, main
from benchmarks.peers.latents import set_up_bench
from benchmarks.peers.lineup import LOWERINGS, PAB, find_equal_cost, line_up, list_tables
from benchmarks.peers.options import Options
from tests.benchmarks.command_errors import refuse
from tests.benchmarks.cut_pipeline import cut_pipeline

EAGERLY = ["--geometry", "tiny", "--eager", "--steps", "6", "--repeats", "2"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A geometry that costs nothing."""
    geometry = Geometry(layers=2, width=32, heads=2, tokens=16)
    monkeypatch.setitem(options.GEOMETRIES, "tiny", geometry)
    defaults = {"steps": 6, "samples": 1, "repeats": 2, "images": 0}
    monkeypatch.setitem(options.DEFAULTS, "tiny", defaults)


def parse(tmp_path, *arguments):
    return Options.read(["--out", str(tmp_path), *arguments])


def names(options, fewer=(5,)):
    return [each.name for each in line_up(options, fewer)]


# ---- who takes part -----------------------------------------------------------------------


def test_line_up_has_everybody_in_each_mode(tmp_path):
    peers = line_up(parse(tmp_path), (40,))
    listed = [each.name for each in peers]
    assert listed[:2] == ["untransformed, compiled", "untransformed, eager"]
    assert "untransformed, compiled by block" in listed
    assert "40 steps" in listed
    assert len({*map(file_name, listed)}) == len(listed)
    json.dumps([each.identity for each in peers])  # as pieces need it
    tools = {"PAB", "FasterCache", "FirstBlockCache", "TaylorSeer", "MagCache", "cache-dit"}
    assert {each.tool for each in peers} == {*tools, "diffusers", None}
    modes = {}
    for each in peers:
        modes.setdefault(each.setting, []).append(each.mode)
    assert modes[PAB] == [EAGER, COMPILED, BLOCKS, UNLIMITED]
    assert modes[f"dqar_fx as {PAB}"] == [EAGER, *LOWERINGS]
    assert FROZEN in modes["untransformed"]
    assert modes["TaylorSeer defaults"] == [STOCK]


@pytest.mark.parametrize("mode", [[], ["--eager"]])
def test_line_up_judges_pictures_of_each_setting(tmp_path, mode):
    peers = line_up(parse(tmp_path, *mode), (40,))
    shown = [each.setting for each in peers if each.is_shown]
    assert {*shown} == {each.setting for each in peers}
    assert bool(mode) or len({*shown}) == len(shown)


def test_line_up_same_tables_are_equal_in_one_peer_and_ours(tmp_path):
    tables = {}
    for each in line_up(parse(tmp_path), ()):
        if each.table is not None:
            tables.setdefault(each.table, set()).add(each.family.kind)
    assert len(tables) == 4
    assert all(kinds == {"peer", "theirs"} for kinds in tables.values())


def test_line_up_eager_compiles_nothing(tmp_path):
    peers = line_up(parse(tmp_path, "--eager"), (40,))
    assert {each.mode for each in peers} == {EAGER, STOCK}
    assert peers[0].name == "untransformed, eager"


def test_line_up_takes_wanted_rows_and_the_base(tmp_path):
    found = names(parse(tmp_path, "--only", "5 steps", "MagCache*, eager"))
    base = ["untransformed, compiled", "untransformed, eager"]
    assert found == [*base, "5 steps", "MagCache 0.06, at most 3, eager"]


def test_pab_table_computes_at_every_second_step():
    same = next(each for each in list_tables(6) if each.setting == PAB)
    table = same.ours.make(None).resolve(["a", "b"])
    assert table.is_read.tolist() == [[bool(step % 2)] * 2 for step in range(6)]


def test_find_equal_cost_is_fewer_steps(tmp_path, monkeypatch):
    first = [same for same in list_tables(12) if same.setting == PAB]
    monkeypatch.setattr(lineup, "list_tables", lambda steps: first)
    bench = set_up_bench(parse(tmp_path, *EAGERLY, "--steps", "12"))
    found = find_equal_cost(bench)
    assert list(found) == sorted({*found}, reverse=True)
    assert all(0 < steps < 12 for steps in found)


def test_compile_repeated_blocks_as_documented_fails_on_a_dit(tmp_path):
    bench = set_up_bench(parse(tmp_path, *EAGERLY))
    with pytest.raises(ValueError, match="_repeated_blocks"):
        Repeated().build(bench, STOCK)
    model = Repeated().build(bench, BLOCKS).module
    compiled = [each._compiled_call_impl is not None for each in model.transformer_blocks]
    assert compiled == [True] * 2


def test_freezing_is_on_while_the_frozen_contender_runs(tmp_path):
    """It is read when something is compiled, which is in the first trajectory."""
    entrant = Frozen().build(set_up_bench(parse(tmp_path, *EAGERLY)), FROZEN)
    with entrant.fresh():
        assert config.freezing
    assert not config.freezing


def test_bench_hands_out_the_clone_that_is_there(tmp_path):
    bench = set_up_bench(parse(tmp_path, *EAGERLY))
    bench.prepare_clone()
    ready = bench.made["clone"]
    assert bench.clone() is ready
    assert bench.clone() is not ready
    assert ready is not bench.original


def test_latents_are_the_same_for_the_same_seeds(tmp_path):
    bench = set_up_bench(parse(tmp_path, *EAGERLY))
    first, second = (bench.task(1).generate(bench.pipe, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (1, 4, 8, 8)
    assert first.isfinite().all()
    assert not torch.equal(first, bench.task(2).generate(bench.pipe, 3))


# ---- processes ----------------------------------------------------------------------------


@pytest.fixture
def launcher(tmp_path):
    options = parse(tmp_path, *EAGERLY)
    return Launcher(options, (), Plan(tmp_path, {"model": "x"}))


PEER = Contender("untransformed", BASE, 6, Repeated(), EAGER)


def finish(launcher, times=2, **facts):
    record = Record(launcher.plan.times(PEER), {"graphs": 0, **facts})
    record.times = dict.fromkeys(range(1, 1 + times), (2.0, 1.0))
    record.save()


def test_launcher_runs_what_lacks_repeats(launcher):
    assert launcher.lacks(PEER)
    finish(launcher, times=1)
    assert launcher.lacks(PEER)
    finish(launcher)
    assert not launcher.lacks(PEER)


def test_launcher_runs_failures_again_only_if_asked(launcher):
    finish(launcher, times=0, error="ValueError: x")
    assert not launcher.lacks(PEER)
    object.__setattr__(launcher.options, "retry", True)
    assert launcher.lacks(PEER)


@pytest.fixture
def started(monkeypatch):
    """Processes run other code; what they were to run, and with which folder of kernels."""
    popen = subprocess.Popen

    def start(command, env, **keywords):
        seen.append((command, env["TORCHINDUCTOR_CACHE_DIR"]))
        return popen([sys.executable, "-c", seen.code], env=env, **keywords)

    class Seen(list):
        code = "pass"

    seen = Seen()
    monkeypatch.setattr(subprocess, "Popen", start)
    return seen


@pytest.mark.parametrize(
    ("code", "limit", "message"),
    [
        (
            "import sys; print('no such kernel'); sys.exit(3)",
            60,
            "with code 3: no such kernel",
        ),
        ("import os; os.kill(os.getpid(), 9)", 60, "ended with signal 9: it said nothing"),
        ("import time; time.sleep(60)", 0.2, "TimeoutError: took more than 0.2 s"),
        ("pass", 60, "its process wrote no result, see logs/untransformed_eager.log"),
    ],
)
def test_launcher_process_without_result_is_a_row(
    code, limit, message, launcher, tmp_path, started, capsys
):
    started.code = code
    object.__setattr__(launcher.options, "timeout_s", limit)
    launcher.run_one(PEER, tmp_path)
    assert message in Record.read(launcher.plan.times(PEER)).error
    assert "untransformed, eager failed: " in capsys.readouterr().err


def test_launcher_gives_each_process_an_empty_cache(launcher, tmp_path, started):
    launcher = Launcher(launcher.options, ("--steps", "6"), launcher.plan, (5, 4))
    for _ in range(2):
        launcher.launch(PEER, tmp_path / "warm", tmp_path / "log")
    (command, first), (_, second) = started
    own = ["--contender", "untransformed, eager", "--warm-cache", str(tmp_path / "warm")]
    assert command[2:] == ["benchmarks.peers.duel", "--steps", "6", "--fewer", "5", "4", *own]
    assert first != second


# ---- the whole job, in this process -------------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    """Processes are calls; the names of those that were made."""
    calls = []

    def launch(self, peer, warm, log):
        calls.append(peer.name)
        command = [*self.arguments, "--contender", peer.name]
        return None if duel.main(command) == 0 else "code"

    monkeypatch.setattr(Launcher, "launch", launch)
    return calls


ROWS = [
    "untransformed, eager",
    "5 steps, eager",
    f"{PAB}, eager",
    f"dqar_fx as {PAB}, eager",
    "FirstBlockCache in the stock pipeline, as documented",
]


def read_rows(folder):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def test_main_writes_rows_table_and_goes_on(tmp_path, here, capsys):
    command = [*EAGERLY, "--fewer", "5", "--only", *ROWS, "--out", str(tmp_path)]
    assert main(command) == 0  # a peer that fails is a row, not a failure
    assert here == ROWS
    rows = read_rows(tmp_path)
    assert list(rows) == ROWS
    base, fewer, pab, ours, stock = rows.values()
    assert stock["error"].startswith("ValueError: No cache context is set.")
    assert (stock["speed_median"], stock["relative_error"]) == (None, None)
    assert (base["relative_error"], base["cache_bytes"]) == (0, None)
    assert base["macs_ratio"] == 1
    assert fewer["macs_ratio"] == pytest.approx(5 / 6)
    assert ours["macs_ratio"] <= pab["macs_ratio"] < 1  # conditioning counts in so small a one
    assert pab["relative_error"] == pytest.approx(ours["relative_error"], rel=1e-3)
    assert pab["cache_bytes"] == ours["cache_bytes"] == 2 * 2 * 16 * 32 * 4
    for row in (base, fewer, pab, ours):
        assert row["repeats"] == 2
        assert row["trajectory_s"] > 0
        assert row["later_peak_bytes"] >= 0
        assert (row["graphs"], row["breaks"], row["recompiles"]) == (0, 0, 0)
    page = (tmp_path / "table.md").read_text()
    assert "tiny has random weights" in page
    assert f"Same table as {PAB}: no compiled row of dqar_fx was timed." in page
    capsys.readouterr()

    here.clear()
    assert main(command) == 0
    assert here == []
    assert read_rows(tmp_path) == rows
    (tmp_path / "rows" / f"{file_name(ROWS[1])}.safetensors").unlink()
    assert main([*command, "--report"]) == 0
    assert here == []
    assert list(read_rows(tmp_path)) == [ROWS[0], *ROWS[2:]]
    assert main([*command, "--retry"]) == 0
    assert here == [ROWS[1], ROWS[4]]
    assert main([*command, "--guidance", "2"]) == 2
    assert "is of another run: guidance 1.5 there, 2.0 here" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_runs_in_a_process_of_its_own(tmp_path):
    folder = cut_pipeline(tmp_path / "pipeline", 1)
    command = ["--quick", "--only", "untransformed, eager", "--model", folder]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    (row,) = read_rows(tmp_path / "out").values()
    assert (row["error"], row["repeats"], row["psnr_db"]) == (None, 1, "inf")
    assert row["speed_median"] > 0


# ---- options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "TeaCache"], "--only: no row is called 'TeaCache'; there are "),
        (["--geometry", "DiT-S/2", "--images", "9"], "--images 9: --geometry DiT-S/2 has"),
        (["--geometry", "DiT-S/2", "--model", "x"], "--model and --geometry are two models"),
        (["--geometry", "DiT-G/2"], "--geometry: invalid choice 'DiT-G/2'"),
        (["--fewer", "50"], "--fewer 50 is not fewer than --steps 50"),
        (["--images", "1"], "--images 1 has no distribution"),
        (["--guidance", "1"], "--guidance: expected a number above 1, found '1'"),
        (["--repeats", "0"], "--repeats: expected an integer of at least 1"),
        (["--steps", "1"], "--steps: expected an integer of at least 2"),
        (["--samples", "0"], "--samples: expected an integer of at least 1"),
        (["--timeout", "0"], "--timeout: expected a number above 0, found '0'"),
        (["--device", "abacus"], "--device: cannot use device 'abacus': "),
        (["--model", "no/such/folder"], "--model no/such/folder is no pipeline: expected"),
        (["--report", "--fewer", "5"], "--report: nothing has been measured in "),
    ],
)
def test_main_bad_input_is_said_with_code_2(arguments, message, tmp_path, capsys):
    fewer = ["--fewer", "5"] if "--fewer" not in arguments else []
    code, error = refuse(main, [*fewer, *arguments, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert message in error


def test_options_of_a_geometry_are_smaller(tmp_path):
    found = parse(tmp_path)
    assert (found.steps, found.samples, found.repeats, found.images) == (50, 8, 5, 700)
    found = parse(tmp_path, "--geometry", "DiT-XL/2")
    assert (found.steps, found.samples, found.repeats, found.images) == (12, 1, 3, 0)
    assert found.model == "DiT-XL/2"
    assert parse(tmp_path, "--geometry", "DiT-XL/2", "--steps", "8").steps == 8


def test_options_without_compiler_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    assert parse(tmp_path).eager
    assert "no C++ compiler was found" in capsys.readouterr().err
