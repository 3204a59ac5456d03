"""The lossless benchmark: its counts, its words, and its command on a tiny model."""

import json

import pytest
import torch

import dqar_fx
from benchmarks import lossless
from benchmarks.harness.macs import count_macs
from benchmarks.lossless import Counts, Lossless, Subject, count, find_subject, measure_error
from tests.benchmarks.command_errors import refuse


@pytest.fixture(scope="module")
def subject():
    return find_subject("tiny", "", 2)


def test_subject_of_the_reference_pipeline_has_labels_it_knows():
    found = find_subject("reference", str(lossless.PIPELINE), 16)
    assert len(found.labels()) == 16
    assert found.labels().max() < found.model.config.num_embeds_ada_norm
    assert found.draw_latent().shape[0] == 16


@torch.no_grad()
def test_counts_are_those_of_steps(subject):
    denoiser = dqar_fx.transform(
        subject.model, dqar_fx.Schedule.compute_all(4), example_inputs=subject.example_call()
    )
    base, own = count(denoiser)
    assert base.macs == count_macs(lambda: subject.model(**subject.example_call()))
    assert 0 < own.macs <= base.macs
    assert own.nbytes > 0
    assert measure_error(subject, denoiser) == 0


def test_lossless_text_has_medians_and_what_is_removed():
    found = Lossless(
        *("x", 2, 10, (2.0, 2.0, 3.0), (1.0, 2.0, 2.0), 1e-6),
        *(Counts(3_000_000, 9_000_000), Counts(2_000_000, 4_000_000), 8_000_000, 1_000_000),
    )
    assert found.speeds == [2.0, 1.0, 1.5]
    text = str(found)
    assert "1.500 (quartiles 1.250 to 1.750): not slower" in text
    assert "1.000 of 3.000 MMACs, 5.000 of 9.000 MB" in text
    assert "1.000 of 8.000 MB merged" in text


@pytest.mark.slow
def test_command_writes_a_row(tmp_path, capsys):
    arguments = [
        "--geometry",
        "tiny",
        "--steps",
        "2",
        "--repeats",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert lossless.main(arguments) == 0
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (row["name"], row["batch"], row["steps"], row["unit"]) == ("tiny", 2, 2, "regional")
    assert len(row["speeds"]) == len(row["base_s"]) == 2
    assert row["error"] < 2e-5
    assert {"processor", "torch", "commit"} <= row.keys()
    assert "trajectories in lockstep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--geometry", "huge"], "invalid choice"),
        (["--model", "/nowhere"], "is no pipeline"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_command_wrong_arguments_say_so(arguments, message, capsys, tmp_path):
    code, error = refuse(lossless.main, [*arguments, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert message in error


def test_subject_draws_what_the_model_takes(subject):
    assert isinstance(subject, Subject)
    assert subject.example_call()["hidden_states"].shape == (2, 4, 8, 8)
