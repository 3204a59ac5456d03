"""The main job runs from command line to pictures, counts right, and fails in one line."""

import json
import shutil

import pytest
import torch
from PIL import Image

import benchmarks.harness.machine
import benchmarks.main_job.job
from benchmarks.harness.contenders import Workshop
from benchmarks.harness.pipelines import Task
from benchmarks.harness.trials import Arena
from benchmarks.main_job.job import Options, enter, main
from benchmarks.reference import PIPELINE
from benchmarks.reference.models import TRANSFORMER_CONFIG
from dqar_fx import DqarError, Schedule
from tests.benchmarks.command_errors import refuse

NAMES = [
    "untransformed eager",
    "compute_all",
    "linear warmup=5",
    "linear warmup=5 max_age=3",
    "interval every=2 warmup=5",
    "interval every=3 warmup=5",
]
SMALL = ["--quick", "--steps", "6", "--seeds", "1"]


def read_rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first two blocks."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    shutil.copytree(PIPELINE, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The job on the whole reference pipeline: its folder, and what it returned."""
    out = tmp_path_factory.mktemp("main")
    return out, main([*SMALL, "--steps", "8", "--out", str(out)])


@pytest.mark.slow
def test_main_reference_writes_a_row_per_contender(finished):
    out, code = finished
    rows = read_rows(out)
    assert code == 0
    assert [row["name"] for row in rows] == [*NAMES, "untransformed 7 steps"]
    assert all(row["error"] is None and row["repeats"] == 1 for row in rows)
    assert {row["model"] for row in rows} == {"reference/pipeline"}
    assert all(row["step_ms_median"] > 0 and row["speed_median"] > 0 for row in rows)


@pytest.mark.slow
def test_main_reference_compute_all_gives_equal_pictures(finished):
    rows = {row["name"]: row for row in read_rows(finished[0])}
    for name in NAMES[:2]:
        assert (rows[name]["psnr_db"], rows[name]["max_abs_err"]) == ("inf", 0.0)
        assert 1.0 <= rows[name]["ceiling"] < 1.001
    for name in NAMES[2:]:
        assert 10 < rows[name]["psnr_db"] < 100
        assert rows[name]["ceiling"] > 1.0


@pytest.mark.slow
def test_main_reference_rows_tell_table_and_slots(finished):
    row = next(r for r in read_rows(finished[0]) if r["name"] == "interval every=3 warmup=5")
    config = TRANSFORMER_CONFIG
    width = config["num_attention_heads"] * config["attention_head_dim"]
    batch, tokens = 2, config["sample_size"] ** 2
    assert row["schedule"] == "CCCCSRRC"
    assert (row["reuse_ratio"], row["distinct_rows"]) == (0.25, 3)
    assert row["cache_bytes"] == 4 * config["num_layers"] * batch * tokens * width


@pytest.mark.slow
def test_main_reference_schedules_can_be_run_again(finished):
    rows = {row["name"]: row for row in read_rows(finished[0])}
    sites = [f"block.{i}" for i in range(TRANSFORMER_CONFIG["num_layers"])]
    again = Schedule.from_actions(rows["linear warmup=5"]["schedule"]).resolve(sites)
    assert again == Schedule.linear(8, 5).resolve(sites)


@pytest.mark.slow
def test_main_reference_draws_one_line_of_pictures_per_row(finished):
    with Image.open(finished[0] / "pictures.png") as grid:
        assert grid.height > 84 * len(read_rows(finished[0]))


def test_main_without_compiler_says_so_and_prints_an_eager_table(
    small_model, tmp_path, capsys, monkeypatch
):
    def find_none():
        raise benchmarks.harness.machine.InvalidCxxCompiler

    monkeypatch.setattr(benchmarks.harness.machine.cpp_builder, "get_cpp_compiler", find_none)
    arguments = [*SMALL, "--lowering", "regional", "--device", "cpu"]
    assert main([*arguments, "--model", small_model, "--out", str(tmp_path)]) == 0
    assert {(r["lowering"], r["base"], r["graphs"]) for r in read_rows(tmp_path)} == {
        ("eager", "untransformed eager", 0)
    }
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("No C++ compiler was found, so nothing is compiled: ")
    assert lines[2].split("|")[1:4] == [f" schedule{' ' * 18}", "   reuse ", "   rows "]
    assert "| untransformed eager       |       - |" in lines[4]
    assert "pictures 1, steps 6, guidance 1.5, float32, lowering eager" in out
    assert "No graph break, no recompile after warm-up." in out
    assert lines[-1].startswith(f"wrote {tmp_path / 'rows.jsonl'} and ")
    assert "repeat 1 of 1" in err


def test_main_failing_contenders_are_rows_and_the_others_go_on(
    small_model, tmp_path, capsys, monkeypatch
):
    build, broken = Workshop.build, ("untransformed eager", "linear warmup=5")

    def fail(self, contender):
        if contender.name in broken:
            raise RuntimeError("no such kernel\nand much more")
        return build(self, contender)

    monkeypatch.setattr(Workshop, "build", fail)
    assert main([*SMALL, "--model", small_model, "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    rows = read_rows(tmp_path)
    for row in rows:
        failed = row["name"] in broken
        message = "RuntimeError: no such kernel\nand much more" if failed else None
        assert row["error"] == message
        assert (row["step_ms_median"] is None) == failed
        assert (row["speed_median"], row["psnr_db"]) == (None, None)  # the base has failed
    assert "linear warmup=5 failed: RuntimeError: no such kernel\n" in out
    assert "Traceback" in err


def test_enter_uncountable_model_has_no_ceiling(capsys, monkeypatch, tmp_path):
    def refuse(*_):
        raise DqarError("it has two heads")

    monkeypatch.setattr(benchmarks.main_job.job, "count_trajectories", refuse)
    workshop = Workshop(torch.nn.Identity(), "regional")
    task = Task((0,), (0,), ("Bag",), 1.5)
    monkeypatch.setattr(Task, "example_call", lambda *_: {})
    options = Options.read(["--steps", "6", "--out", str(tmp_path)])
    trials = enter(Arena(None, task, workshop, torch.device("cpu")), options)
    assert [trial.macs for trial in trials] == [None] * len(trials)
    assert [t.contender.name for t in trials][1] == "untransformed compiled"
    assert "so there is no ceiling: it has two heads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: expected an integer of at least 1, found '0'"),
        (["--seeds", "many"], "--seeds: expected an integer of at least 1"),
        (["--device", "abacus"], "--device: cannot use device 'abacus': "),
        (["--device", "meta"], "--device: device 'meta' computes nothing"),
        (["--model", "no/such/folder"], "--model no/such/folder is no pipeline: expected"),
        (["--lowering", "none"], "invalid choice 'none' for argument '--lowering'"),
        (["--out", "{file}"], "error: cannot write to "),
        (["--model", "{file}"], "is no pipeline: expected"),
    ],
)
def test_main_bad_input_is_said_with_code_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    arguments = [a.replace("{file}", str(file)) for a in arguments]
    code, error = refuse(main, ["--out", str(tmp_path), *arguments], capsys)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"_class_name": "FluxPipeline"}', "is a FluxPipeline; expected a DiTPipeline"),
        ("{", "model_index.json cannot be read"),
        ('{"_class_name": "DiTPipeline"}', "cannot load --model"),
    ],
)
def test_main_broken_model_folder_is_one_line_and_code_2(index, message, tmp_path, capsys):
    (tmp_path / "model_index.json").write_text(index)
    arguments = [*SMALL, "--model", str(tmp_path), "--out", str(tmp_path)]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_main_help_has_examples(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "python -m benchmarks --model facebook/DiT-XL-2-256" in capsys.readouterr().out
