"""Solvers at equal evaluations: who takes part, the best of each, and the job as a whole."""

from __future__ import annotations

import json

import pytest

from benchmarks import solvers
from benchmarks.solvers import FITTED, SOLVERS, Row, find_best, list_solvers, make_solver
from dqar_fx import Teacher
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr
from tests.benchmarks.command_errors import refuse
from tests.helpers.error_models import reference_pipeline


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers', with numpy 2
def test_every_solver_takes_as_many_evaluations_as_were_asked_for():
    pipe = reference_pipeline()
    for evaluations in (7, 8):
        listed = list(list_solvers(pipe, evaluations))
        names = {name for name, *_ in listed}
        assert set(SOLVERS) - names == ({"Heun"} if evaluations == 8 else set())
        for _, _, scheduler, steps in listed:
            scheduler.set_timesteps(steps)
            assert len(scheduler.timesteps) == evaluations


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_euler_takes_the_same_steps_in_any_pipeline():
    """Of DDIM, whose step is Euler's in samples that are scaled."""
    pipe = reference_pipeline()
    job = PipelineJob(pipe, (1, 8), 3, 12, 2, {"guidance_scale": 1.5})
    euler = make_solver(pipe, "Euler", "leading")
    heun = make_solver(pipe, "Heun", "leading")
    ddim = make_solver(pipe, "DDIM", "leading")
    right = Teacher(60).pictures(job)
    by_euler, by_ddim = (psnr(right, run_with(job, each, 12)) for each in (euler, ddim))
    assert by_euler == pytest.approx(by_ddim, abs=4)
    assert psnr(right, run_with(job, heun, 20)) > by_euler + 3


def test_the_best_spacing_stands_for_a_solver():
    rows = [
        Row(8, "DDIM", "leading", 20.0),
        Row(8, "DDIM", "trailing", 21.0),
        Row(8, "Euler", "Karras", None),
        Row(8, FITTED, FITTED, 30.0),
        Row(9, FITTED, FITTED, 31.0),
        Row(9, "DDIM", "leading", 33.0),
    ]
    eight, nine = find_best(rows)
    assert (eight.show("DDIM"), eight.show("Heun")) == ("21.0 (trailing)", "-")
    assert (eight.show("Euler"), eight.show(FITTED)) == ("- (Karras)", "30.0")
    assert (eight.gain_db, nine.gain_db) == (9, -2)


def test_the_command_compares_fits_and_reads_its_fits_again(tmp_path, capsys):
    options = ["--quick", "--out", str(tmp_path)]
    assert solvers.main(options) == 0
    first = read(tmp_path)
    assert {row["solver"] for row in first} == {*SOLVERS, FITTED}
    assert all(
        row["evaluations"] == 3 and row["teacher"].endswith("12 steps") for row in first
    )
    fitted = first[-1]
    assert fitted["fitted_db"] > 0
    said = capsys.readouterr().out
    assert "above the best other, dB" in said
    assert f"{fitted['psnr_db']:.1f}" in said
    assert solvers.main(options) == 0
    again = read(tmp_path)[-1]
    assert again == fitted | {"psnr_db": pytest.approx(fitted["psnr_db"])}
    assert solvers.main([*options, "--guidance", "4"]) == 0  # of other settings: fitted anew
    other = read(tmp_path)[-1]
    assert other["fitted_db"] != fitted["fitted_db"]


def read(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_solver_of_one_evaluation_is_refused(capsys, tmp_path):
    options = ["--evaluations", "1", "--out", str(tmp_path)]
    code, said = refuse(solvers.main, options, capsys)
    assert code == 2
    assert "evaluations" in said
