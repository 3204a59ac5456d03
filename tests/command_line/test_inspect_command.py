"""``dqar-fx inspect``: text, JSON and page; wrong inputs are one line and code 2."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import dqar_fx
from benchmarks.reference import PIPELINE
from dqar_fx import GraphDiff, Report, Schedule
from dqar_fx.command_line.example_inputs import derive_inputs
from dqar_fx.command_line.geometry import Sizes
from dqar_fx.command_line.models import build_model
from tests.helpers.config_files import DIT_XL, config, expect_error, run, write_config

__all__ = ["config"]
LINEAR = ("--schedule", "linear", "--steps", 8, "--warmup", 2)


def test_inspect_text_has_table_and_report(config, capsys):
    code, out, _ = run(capsys, "inspect", config, *LINEAR)
    assert code == 0
    model = build_model(config, torch.float32)
    denoiser = dqar_fx.transform(
        model,
        Schedule.linear(8, warmup=2),
        example_inputs=derive_inputs(model, Sizes()),
        compile="regional",
    )
    assert str(denoiser.table) in out
    assert str(denoiser.report(device="A100")) in out
    assert "model: DiTTransformer2DModel" in out
    assert "sites: 2 (self)" in out
    assert "\x1b" not in out


def test_inspect_json_is_json_alone(config, capsys):
    code, out, _ = run(capsys, "inspect", "--config", config, *LINEAR, "--json")
    content = json.loads(out)
    assert code == 0
    assert [site["path"] for site in content["explanation"]["sites"]] == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.1.attn1",
    ]
    report = Report.from_json(json.dumps(content["report"]))
    assert report.num_steps == 8
    assert sum(len(row.steps) for row in report.rows) == 8
    assert report.lowering == "regional"


def test_inspect_pipeline_folder_writes_page(tmp_path, capsys):
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, "inspect", PIPELINE, *LINEAR, "--html", page)
    assert (code, out) == (0, f"wrote {page}\n")
    assert "DiTTransformer2DModel" in page.read_text()


def test_inspect_diff_is_the_rows(config, capsys):
    argv = ("inspect", config, "--schedule", "CRRC")
    assert (
        "aten.scaled_dot_product_attention.default" in run(capsys, *argv, "--diff", "0:1")[1]
    )
    assert run(capsys, *argv, "--diff", "1:2")[:2] == (0, "the same graph\n")


@pytest.mark.slow
def test_inspect_weights_merges_equal_ones(capsys):
    folder = PIPELINE / "transformer"
    argv = ("inspect", folder, "--schedule", "CR", "--lowering", "eager", "--json")
    without, loaded = (
        json.loads(run(capsys, *argv, *more)[1]) for more in ((), ("--weights",))
    )
    assert without["model"] == loaded["model"]
    assert without["explanation"]["sites"] == loaded["explanation"]["sites"]
    macs = [content["report"]["conditioning"]["macs"] for content in (without, loaded)]
    assert macs[0] >= macs[1] > 0


def test_inspect_full_width_from_config_alone(tmp_path, capsys):
    name = write_config(tmp_path / "xl.json", DIT_XL)
    code, out, _ = run(capsys, "inspect", name, *LINEAR, "--dtype", "bfloat16", "--json")
    content = json.loads(out)
    assert code == 0
    assert content["model"]["inputs"].startswith("hidden_states bfloat16[2, 4, 32, 32]")
    # queries, keys, values and output of 2 x 256 tokens of width 1152, and the products
    attention = 4 * 512 * 1152 * 1152 + 2 * 512 * 256 * 1152
    computed, reused = (content["report"][name]["macs"] for name in ("computed", "reused"))
    assert computed - reused == 2 * attention


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "give one model"),
        (("no/such/folder/at/all",), "is no model"),
        (("{config}", "--config", "{config}"), "give one model"),
        (("{config}", "--schedule", "lineal"), "'lineal' is none"),
        (("{config}", "--every", "3"), "--every says nothing to the schedule linear"),
        (("{config}", "--sites", "cross"), "selects no site"),
        (("{config}", "--device", "H1000"), "H1000"),
        (("{config}", "--steps", "0"), "at least 1"),
        (("{config}", "--input", "nothing=2"), "has no input 'nothing'"),
        (("{config}", "--input", "timestep=two"), "expected NAME=SHAPE:DTYPE"),
        (("{config}", "--diff", "0:99"), "no step 99"),
        (("{config}", "--diff", "4"), "two steps such as 4:17"),
        (("{config}", "--json", "--html", "x.html"), "not allowed with"),
        (("{config}", "--html", "/no/such/folder/x.html"), "its folder does not exist"),
        (("--config", "{config}", "--weights"), "--config has no weights"),
    ],
)
def test_inspect_wrong_input_is_one_line(config, capsys, argv, said):
    named = [config if each == "{config}" else each for each in argv]
    assert said in expect_error(capsys, "inspect", *named)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no config of a model"),
        ('{"_class_name": "Pipe"}', "expected _class_name to be a model of diffusers"),
        ('{"_class_name": "DiTTransformer2DModel", "norm_type": "x"}', "can be built"),
    ],
)
def test_inspect_wrong_config_is_one_line(tmp_path, capsys, content, said):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert said in expect_error(capsys, "inspect", path)
    (tmp_path / "empty").mkdir()
    assert "is a folder without" in expect_error(capsys, "inspect", tmp_path / "empty")


def test_inspect_hub_that_is_not_reached_is_one_line(capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no connection\nand more")

    monkeypatch.setattr("diffusers.AutoModel.load_config", refuse)
    assert "cannot be fetched from the hub: no connection" in expect_error(
        capsys, "inspect", "facebook/DiT-XL-2-256"
    )


@pytest.mark.slow
def test_command_without_reader_ends_quietly(config):
    command = [sys.executable, "-m", "dqar_fx", "inspect", config, *map(str, LINEAR)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()  # libraries may say something when they are imported
        assert "Traceback" not in errors
        assert "Broken pipe" not in errors
        assert process.wait() == 141


@pytest.mark.parametrize("command", [(), ("inspect",), ("table",), ("diff",)])
def test_help_has_examples(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "examples:\n  dqar-fx " in out


def test_json_of_diff_reads_back(config, capsys):
    argv = ("diff", config, "0:1", "--schedule", "CR", "--json")
    diff = GraphDiff.from_json(run(capsys, *argv)[1])
    assert diff.delta["aten.scaled_dot_product_attention.default"] == -2
