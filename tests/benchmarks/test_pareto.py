"""The comparison of quality and measured time runs whole, and goes on where it was."""

import json
import shutil

import pytest
import torch
from PIL import Image

from benchmarks.contenders import settings
from benchmarks.contenders.bench import Bench
from benchmarks.contenders.kinds import KEYS
from benchmarks.contenders.race import Race
from benchmarks.contenders.recipes import Transformed
from benchmarks.pareto import options
from benchmarks.pareto.job import main
from benchmarks.pareto.options import SWEEP, Options
from benchmarks.reference import PIPELINE
from dqar_fx import Schedule
from tests.benchmarks.command_errors import refuse

pytestmark = pytest.mark.slow

OURS = ["fewer", "attention", "all", "forecast"]
SMALL = ["--quick", "--only", *OURS, "diffusers"]
PEERS = {("TaylorSeer", "N=3 O=1"), ("FirstBlockCache", "in the stock pipeline")}
NAMES = [
    "untransformed, eager",
    "converged: DPM-Solver++ (2M), 12 steps, eager",
    "4 steps, eager",
    "attention, every 2, eager",
    "attention + ff, every 2, eager",
    "forecast order 1, every 2, eager",
]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first two blocks."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    shutil.copytree(PIPELINE, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    return str(folder)


@pytest.fixture(scope="module")
def few_peers():
    """Two settings of diffusers' hooks are enough: one that runs, and one that fails."""
    with pytest.MonkeyPatch.context() as patch:
        every = list(settings.list_hooks())
        chosen = [(t, s, r) for t, s, r in every if (t, s) in PEERS]
        patch.setattr(settings, "list_hooks", lambda: iter(chosen))
        yield


@pytest.fixture(scope="module")
def finished(small_model, few_peers, tmp_path_factory):
    """The whole job, small: its folder, and what it returned."""
    out = tmp_path_factory.mktemp("pareto")
    return out, main([*SMALL, "--model", small_model, "--out", str(out)])


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of what the whole job wrote, to be spoilt."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def again(small_model, few_peers):
    """The same command for another folder, with more options."""

    def run(out, *more):
        return main([*SMALL, "--model", small_model, "--out", str(out), *more])

    return run


@pytest.fixture
def runs(monkeypatch):
    """Steps and first seed of each trajectory that is run."""
    calls, run = [], Bench.run

    def note(self, entrant, steps, task):
        calls.append((steps, task.seeds[0]))
        return run(self, entrant, steps, task)

    monkeypatch.setattr(Bench, "run", note)
    return calls


def read_rows(folder):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


# ---- the whole job -----------------------------------------------------------------------


def test_main_writes_all_files(finished):
    out, code = finished
    assert code == 0  # a peer that fails is a row, not a failure
    assert {path.name for path in out.iterdir()} == {
        *("rows", "images", "rows.jsonl", "table.md", "front.png", "front.svg")
    }
    with Image.open(out / "front.png") as image:
        assert image.width > 1000


def test_main_rows_are_records(finished):
    rows = read_rows(finished[0])
    assert list(rows)[: len(NAMES)] == NAMES
    base, forecast = rows[NAMES[0]], rows[NAMES[-1]]
    assert (base["speed_median"], base["psnr_db"], base["macs_ratio"]) == (1.0, "inf", 1.0)
    assert base["saving_in_time"] is None
    assert rows[NAMES[1]]["converged_db"] == "inf"
    assert 0 < base["converged_db"] < 100
    assert 0 < forecast["converged_db"] < 100
    for row in rows.values():
        assert row["torch"] == torch.__version__
        assert row["commit"] is None or len(row["commit"]) == 40 or row["error"]
    assert 0.4 < forecast["macs_ratio"] < 0.6
    assert (forecast["repeats"], forecast["pictures"]) == (1, 4)
    assert forecast["trajectory_s"] == pytest.approx(8e-3 * forecast["step_ms"])
    assert 15 < forecast["psnr_db"] < 60
    assert forecast["judged"]["images"] == 6
    assert len(forecast["frechet_differences"]) == 3


def test_main_failing_peer_is_a_row(finished):
    row = read_rows(finished[0])["FirstBlockCache in the stock pipeline, eager"]
    assert row["error"].startswith("ValueError: No cache context is set.")
    assert (row["speed_median"], row["psnr_db"], row["judged"]) == (None, None, None)


def test_main_page_has_tables_and_verdict(finished):
    page = (finished[0] / "table.md").read_text()
    assert "saving in time |" in page
    assert "FD-FashionCNN, n=2" in page
    assert "At 2x or faster" in page
    assert "At 2.5x or faster" in page
    assert "FirstBlockCache in the stock pipeline (eager) failed: ValueError: No cache" in page


# ---- going on ----------------------------------------------------------------------------


def test_main_again_runs_nothing(copied, again, runs):
    before = read_rows(copied)
    (copied / "rows" / "firstblockcache_in_the_stock_pipeline_eager.safetensors").touch()
    assert again(copied, "--only", *OURS) == 0
    assert runs == []
    assert all(before[name] == row for name, row in read_rows(copied).items())


def test_main_goes_on_where_it_was(copied, again, runs):
    before = read_rows(copied)
    (copied / "rows" / "attention_every_2_eager.safetensors").unlink()
    (copied / "images" / "4_steps_eager-1.safetensors").unlink()
    assert again(copied, "--only", *OURS) == 0
    base_warm, own_warm, base_timed, own_timed, picture = runs
    assert base_warm == own_warm == (8, 42)
    assert base_timed == own_timed == (8, 44)
    assert picture == (4, 100_042)
    after = read_rows(copied)
    assert after[NAMES[2]]["psnr_db"] == before[NAMES[2]]["psnr_db"]
    assert after[NAMES[1]] == before[NAMES[1]]


def test_main_more_repeats_add_to_those_on_disk(copied, again, runs):
    arguments = ("--only", "fewer", "--repeats", "3", "--judge", "none")
    assert again(copied, *arguments) == 0
    assert runs.count((4, 44)) == 0  # the first repeat is on disk
    assert [seed for steps, seed in runs if steps == 4] == [42, 46, 48]
    assert read_rows(copied)[NAMES[1]]["repeats"] == 3


def test_main_killed_keeps_what_was_measured(small_model, again, tmp_path, monkeypatch, runs):
    timed = Race.time

    def stop(self, contender, number, base_s):
        if number == 2:
            raise KeyboardInterrupt
        timed(self, contender, number, base_s)

    arguments = ("--only", "fewer", "--fewer", "3", "4", "--repeats", "2", "--images", "0")
    monkeypatch.setattr(Race, "time", stop)
    assert again(tmp_path, *arguments) == 130
    monkeypatch.setattr(Race, "time", timed)
    runs.clear()
    assert again(tmp_path, *arguments) == 0
    assert sorted(steps for steps, seed in runs if seed == 46) == [3, 4, 8, 12]  # a new pair
    assert not [seed for _, seed in runs if seed == 44]
    assert {row["repeats"] for row in read_rows(tmp_path).values()} == {2}


def test_main_failed_row_is_tried_again(copied, again, monkeypatch):
    def fail(self, bench, mode):
        raise RuntimeError("no such kernel")

    (copied / "rows" / "attention_every_2_eager.safetensors").unlink()
    build = Transformed.build
    monkeypatch.setattr(Transformed, "build", fail)
    arguments = ("--only", "attention", "--judge", "none")
    assert again(copied, *arguments) == 1
    assert read_rows(copied)[NAMES[3]]["error"] == "RuntimeError: no such kernel"
    monkeypatch.setattr(Transformed, "build", build)
    assert again(copied, *arguments) == 0
    assert read_rows(copied)[NAMES[3]]["error"] is None


def test_main_other_options_are_refused(copied, again, capsys, runs):
    assert again(copied, "--guidance", "2") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    assert "is of another run: guidance 1.5 there, 2.0 here" in err
    assert runs == []


# ---- options -----------------------------------------------------------------------------


def test_main_judges_the_rows_asked_for(copied, again):
    (copied / "images").rename(copied / "gone")
    assert again(copied, "--only", *OURS, "--judge", NAMES[1]) == 0
    rows = read_rows(copied)
    assert [name for name, row in rows.items() if row["judged"]] == NAMES[:2]


@pytest.mark.parametrize("arguments", [("--judge", "none"), ("--images", "0")])
def test_main_judges_nothing(arguments, copied, again):
    (copied / "images").rename(copied / "gone")
    assert again(copied, "--only", *OURS, *arguments) == 0
    assert not (copied / "images").exists()
    assert not any(row["judged"] for row in read_rows(copied).values())


@pytest.mark.slow
def test_main_tables_are_rows(small_model, again, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    sites = tuple(
        f"transformer_blocks.{i}.{part}" for i in range(2) for part in ("attn1", "ff")
    )
    schedule = Schedule.from_actions("CCSSFFSF", orders=1)
    schedule.resolve(sites).save(folder / "found.json")
    (folder / "measured.json").write_text('{"ms": []}')  # an optimiser writes more than tables
    arguments = ("--only", "tables", "--tables", str(folder), "--images", "0")
    assert again(tmp_path / "out", *arguments) == 0
    row = read_rows(tmp_path / "out")["table found, eager"]
    assert row["family"] == "optimised tables"
    assert row["macs_ratio"] < 0.8
    schedule = Schedule.from_actions("CCCSFFSF", orders=1)
    schedule.resolve(sites).save(folder / "found.json")
    assert again(tmp_path / "out", *arguments) == 2  # another table of the same name


def write_table(folder, steps, sites):
    table = Schedule.interval(steps, 2).resolve(sites)
    folder.mkdir(exist_ok=True)
    table.save(folder / "wrong.json")


@pytest.mark.parametrize(
    ("steps", "sites", "message"),
    [
        (9, ["transformer_blocks.0.attn1"], "wrong.json is for 9 steps, but --steps is 8"),
        (8, ["transformer_blocks.7.attn1"], "wrong.json does not fit the model: sites="),
        (
            8,
            ["transformer_blocks.1.attn1", "transformer_blocks.0.attn1"],
            "wrong.json has 2 sites from transformer_blocks.1.attn1 on, but the model has 2 "
            "from transformer_blocks.0.attn1 on",
        ),
    ],
)
def test_main_table_of_another_model_is_one_line_and_code_2(
    steps, sites, message, again, tmp_path, capsys
):
    write_table(tmp_path / "tables", steps, sites)
    assert again(tmp_path, "--tables", str(tmp_path / "tables")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_main_damaged_table_is_one_line_and_code_2(again, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.json").write_text("{")
    assert again(tmp_path, "--tables", str(tmp_path / "tables")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no branch table can be read from" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats: expected an integer of at least 1, found '0'"),
        (["--pair", "0"], "--pair: expected an integer of at least 1"),
        (["--steps", "1"], "--steps: expected an integer of at least 2"),
        (["--samples", "0"], "--samples: expected an integer of at least 1"),
        (["--fewer", "8"], "--fewer 8 is not fewer than --steps 8"),
        (["--every", "1"], "--every: expected an integer of at least 2"),
        (["--orders", "4"], "--orders: expected 1 to 3, found '4'"),
        (["--warmup", "0"], "--warmup: expected an integer of at least 1"),
        (["--targets", "1"], "--targets: expected a number above 1, found '1'"),
        (["--targets", "fast"], "--targets: expected a number above 1, found 'fast'"),
        (["--images", "10"], "--images 10 is no multiple of --seed-groups 3"),
        (["--only", "magic"], "--only: invalid choice 'magic'"),
        (["--judge", "12 steps"], "--judge: there is no row '12 steps' in this run"),
        (["--tables", "no/such"], "--tables no/such is no folder"),
        (["--tables", "{empty}"], "has no branch table (*.json) in it"),
        (["--lowering", "magic"], "--lowering"),
        (["--device", "abacus"], "--device: cannot use device 'abacus': "),
        (["--dtype", "int3"], "--dtype: invalid choice"),
        (["--model", "no/such/folder"], "--model no/such/folder is no pipeline: expected"),
        (["--out", "{file}"], "cannot write to "),
    ],
)
def test_main_bad_input_is_said_with_code_2(arguments, message, tmp_path, small_model, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    places = {"{file}": str(tmp_path / "file"), "{empty}": str(tmp_path / "empty")}
    given = [places.get(a, a) for a in arguments]
    known = {"--model": small_model, "--out": str(tmp_path)}
    others = [pair for pair in known.items() if pair[0] not in given]
    command = [*SMALL, *sum(others, ()), *given]
    code, error = refuse(main, command, capsys)
    assert code == 2
    assert message in error


def test_main_without_compiler_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    assert Options.read(["--out", str(tmp_path)]).lowering == "eager"
    assert "no C++ compiler was found" in capsys.readouterr().err


def test_options_defaults_are_those_of_the_full_comparison(tmp_path):
    found = Options.read(["--out", str(tmp_path)])
    assert (found.steps, found.guidance, found.samples, found.repeats) == (50, 1.5, 8, 5)
    assert (found.fewer, found.every, found.orders) == (SWEEP, (2, 3, 4, 5), (1, 2))
    assert (found.images, found.seed_groups, found.judge) == (2100, 3, None)
    assert found.only == KEYS
    scaled = Options.read(["--out", str(tmp_path), "--steps", "20"])
    assert scaled.fewer == (4, 5, 6, 7, 8, 9, 10, 12, 14, 16)
