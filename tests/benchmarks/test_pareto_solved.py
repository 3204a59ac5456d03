"""Other solvers beside caches: who takes part, how rows are placed, and what is missing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.kinds import BASE, BOTH, EAGER, TEACHER
from benchmarks.contenders.records import Record
from benchmarks.contenders.rows import make_rows
from benchmarks.harness.errors import InputError
from benchmarks.harness.rows import write_rows
from benchmarks.harness.store import Piece, file_name
from benchmarks.pareto.lineup import line_up
from benchmarks.pareto.options import Options
from benchmarks.pareto.verdict import format_verdict
from benchmarks.quality.judge import Judge
from benchmarks.solvers import FITTED, Row
from dqar_fx import MultistepScheduler
from dqar_fx.solver.noise_levels import NoiseLevels
from tests.helpers.error_models import reference_pipeline

FOUND = [
    Row(8, "DDIM", "leading", 20.0),
    Row(8, "DDIM", "trailing", 21.0),
    Row(8, "UniPC 2", "Karras", None),
    Row(7, "Heun", "trailing", 19.0),
    Row(8, FITTED, FITTED, 30.0),
]


@pytest.fixture
def folder(tmp_path):
    """What a run of benchmarks.solvers has left."""
    write_rows(FOUND, tmp_path / "rows.jsonl", {})
    levels = NoiseLevels.of(reference_pipeline().scheduler)
    fitted = MultistepScheduler.of(levels, levels.even_timesteps(8))
    fitted.save_pretrained(tmp_path / "fitted-8")
    return tmp_path


def read(folder, *more):
    only = ("--only", "solvers", "fitted", "--teacher", "0")
    return Options.read([*only, "--solvers", str(folder), "--out", str(folder / "out"), *more])


def test_each_solver_takes_part_at_its_best_spacing(folder):
    names = [each.name for each in line_up(read(folder), [])][2:]
    assert names == ["DDIM, trailing, 8 steps", "fitted solver, 8 steps"]


def test_solvers_run_in_the_place_of_the_pipelines_scheduler(folder):
    pipe = reference_pipeline()

    class Bench:
        original = compiled = pipe.transformer

    Bench.pipe = pipe
    plain, fitted = (each.recipe.build(Bench, EAGER) for each in line_up(read(folder), [])[2:])
    assert plain.scheduler.config.timestep_spacing == "trailing"
    assert fitted.scheduler.num_steps == 8


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(InputError, match=r"has no rows.jsonl.*python -m benchmarks.solvers"):
        line_up(read(tmp_path / "nothing"), [])
    (folder / "fitted-8" / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match=r"scheduler_config.json is missing"):
        line_up(read(folder), [])


def test_rows_are_placed_by_their_distance_to_the_teacher(tmp_path):
    contenders = [
        Contender("untransformed", BASE, 4, None, EAGER),
        Contender("converged", TEACHER, 9, None, EAGER),
        Contender("fast", BOTH, 4, None),
    ]
    records = {e.name: Record(Piece(tmp_path / file_name(e.name), {})) for e in contenders}
    pictures = 0.5 * torch.ones(2, 1, 8, 8)
    for number, record in enumerate(records.values()):
        record.images = {1: pictures + (0.1, 0.0, 0.01)[number]}
        record.times, record.facts = {1: (8.0, 8.0 / (1 + number))}, {"macs": 100}
    run = {"lpips_name": None}
    rows = make_rows(contenders, records, Judge(), run)
    assert [row.converged_db for row in rows] == pytest.approx([20, float("inf"), 40], abs=0.1)
    assert rows[2].quality_db == rows[2].converged_db > rows[2].psnr_db
    assert format_verdict(rows, [2.0])[0] == "At 2x or faster, ours: 40.0 dB (fast, 3.00x)."
    without = make_rows([contenders[0], contenders[2]], records, Judge(), run)
    assert without[1].converged_db is None
    assert without[1].quality_db == without[1].psnr_db
