"""The ablation runs whole, and goes on after an interruption."""

import json
import shutil

import pytest
from PIL import Image

from benchmarks.ablation import job
from benchmarks.ablation.claims import CLAIMS
from benchmarks.ablation.configurations import BASELINE, FULL, KV, QUANT, SCHEDULING
from benchmarks.ablation.facts import gather_facts
from benchmarks.ablation.job import main
from benchmarks.ablation.report import FILES
from benchmarks.harness.contenders import Workshop
from tests.benchmarks.ablation_runs import NAMES, note_groups
from tests.benchmarks.cut_pipeline import cut_pipeline

SMALL = ["--quick", "--steps", "8", "--samples", "2", "--images", "6", "--batch", "2"]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first block."""
    return cut_pipeline(tmp_path_factory.mktemp("small") / "pipeline", num_layers=1)


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """The whole job, small: its folder, and what it returned. Facts are gathered once."""
    out = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        known = []

        def gather_once(*arguments):
            known[:] = known or [gather_facts(*arguments)]
            return known[0]

        patch.setattr(job, "gather_facts", gather_once)
        yield out, main([*SMALL, "--model", small_model, "--out", str(out)])


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of what the whole job wrote, to be spoilt."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def generated(monkeypatch):
    """Which configurations and groups are generated, instead of generating them."""
    return note_groups(monkeypatch)


def read_rows(folder):
    return {
        row["name"]: row
        for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    }


def run_main(arguments):
    try:
        return main(arguments)
    except SystemExit as exit:
        return exit.code


def test_main_writes_all_files(finished):
    out, code = finished
    assert code == 0
    assert {path.name for path in out.iterdir()} == {*FILES, "images", "times.safetensors"}
    rows = read_rows(out)
    assert list(rows)[:-1] == NAMES
    assert all(row["error"] is None and row["sample_s"] > 0 for row in rows.values())
    assert len(json.loads((out / "claims.json").read_text())) == len(CLAIMS)
    with Image.open(out / "pictures.png") as grid:
        assert grid.height > 84 * len(rows)


def test_main_page_has_table_pairs_and_claims(finished):
    page = (finished[0] / "ablation.md").read_text()
    assert " FD-FashionCNN n=2 |" in page
    assert "INT8 against FP16: full_dqar" in page
    assert all(claim in page for claim, _ in CLAIMS)
    assert "not testable here" in page


def test_main_rows_have_quality_of_all_groups(finished):
    rows = read_rows(finished[0])
    for row in rows.values():
        assert (row["images"], len(row["frechet"])) == (6, 3)
        assert row["agreement"] is not None
    assert rows[BASELINE]["psnr_db"] == "inf"
    assert rows[BASELINE]["frechet_differences"] == [0.0, 0.0, 0.0]
    assert 10 < rows[FULL]["psnr_db"] < 60
    assert rows[QUANT]["psnr_db"] < rows[SCHEDULING]["psnr_db"]
    assert rows[SCHEDULING]["schedule"] == rows[FULL]["schedule"] == rows[KV]["schedule"]


def test_main_fewer_steps_see_other_noise_and_are_not_compared(finished):
    row = list(read_rows(finished[0]).values())[-1]
    assert row["name"] == f"{row['steps']} steps, cost of full_dqar"
    assert row["steps"] < 8
    assert (row["psnr_db"], row["ssim"], row["lpips"]) == (None, None, None)
    assert row["frechet"]


def test_main_again_generates_and_times_nothing(finished, copied, generated, small_model):
    before = read_rows(copied)
    assert main([*SMALL, "--model", small_model, "--out", str(copied)]) == 0
    assert generated == []
    assert read_rows(copied) == before


def test_main_goes_on_where_it_was(copied, generated, small_model):
    lost = copied / "images" / "full_dqar-1.safetensors"
    lost.unlink()
    arguments = [*SMALL, "--no-time", "--model", small_model, "--out", str(copied)]
    assert main(arguments) == 0
    assert generated == [(FULL, 1)]
    assert lost.exists()
    assert read_rows(copied)[FULL]["sample_s"] > 0  # the times were on disk


def test_main_other_options_are_refused(copied, generated, small_model, capsys):
    arguments = [*SMALL, "--guidance", "2", "--model", small_model, "--out", str(copied)]
    assert main(arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    assert "baseline-0.safetensors is of another run: guidance 1.5 there, 2.0 here" in err
    assert generated == []


def test_main_failing_configuration_is_a_row(
    copied, generated, small_model, capsys, monkeypatch
):
    for path in (copied / "images").glob("quant_cache_only-*"):
        path.unlink()

    def fail(self, contender):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Workshop, "build", fail)
    arguments = [*SMALL, "--no-time", "--model", small_model, "--out", str(copied)]
    assert main(arguments) == 1
    rows = read_rows(copied)
    assert rows[QUANT]["error"] == "RuntimeError: no such kernel"
    assert [name for name, row in rows.items() if row["error"]] == [QUANT]
    assert "quant_cache_only failed: RuntimeError: no such kernel" in capsys.readouterr().out


def test_main_interrupted_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupt)
    assert main(["--quick", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "10"], "--images 10 is no multiple of --seed-groups 3"),
        (["--steps", "1"], "argument --steps: expected an integer of at least 2, found '1'"),
        (["--samples", "0"], "argument --samples: expected an integer of at least 1"),
        (["--scheduler", "dpm"], "argument --scheduler: invalid choice"),
        (["--device", "abacus"], "argument --device: cannot use device 'abacus': "),
        (["--model", "no/such/folder"], "--model no/such/folder is no pipeline: expected"),
        (["--classes", "3", "11"], "--classes 11: the pipeline has 10 classes, 0 to 9"),
        (["--real", "photos"], "the extra metrics are for others"),
        (["--out", "{file}"], "argument --out: cannot write to "),
    ],
)
def test_main_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    arguments = [a.replace("{file}", str(file)) for a in arguments]
    assert run_main(["--out", str(tmp_path), "--lowering", "eager", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err
