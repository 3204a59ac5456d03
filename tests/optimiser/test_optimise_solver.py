"""The search for a solver and a table together: patterns, prices, what is kept and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import Optimum, ScheduleError, Teacher, optimise
from dqar_fx.optimiser import solver_search
from dqar_fx.optimiser.optimise_table import HELD_OUT_SEEDS
from dqar_fx.optimiser.patterns import Pattern, Prices, list_patterns
from dqar_fx.optimiser.student import PARTS
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr
from tests.helpers.error_models import reference_pipeline

INPUTS = [1, 8]
TEACHER = Teacher(12)
ASKED = {
    "evaluations": 5,
    "teacher": TEACHER,
    "trials": 3,
    "rounds": 1,
    "orders": (0, 1),
    "progress": False,
    "batch_size": 2,
    "guidance_scale": 1.5,
}


@pytest.fixture(scope="module")
def pipe():
    return reference_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("found")


@pytest.fixture(scope="module")
def found(pipe, folder):
    return optimise(pipe, INPUTS, folder=folder, **ASKED)


# ---- patterns ----------------------------------------------------------------------------

PRICES = st.builds(
    lambda kept, read, more: Prices(
        10.0, 10 * kept, {0: 10 * read, 1: 10 * read + more, 2: 10 * read + 2 * more}, {}
    ),
    st.floats(1, 1.2),
    st.floats(0.02, 0.9),
    st.floats(0, 1),
)


@settings(max_examples=100, deadline=None)
@given(prices=PRICES, evaluations=st.floats(2, 30))
def test_patterns_are_tables_within_the_time(prices, evaluations):
    plain, *others = list_patterns(10 * evaluations, prices, (0, 1, 2))
    assert plain.letters == "C" * int(evaluations + 1e-9)
    assert len({plain, *others}) == 1 + len(others)
    for pattern in others:
        assert pattern.ms(prices) <= 10 * evaluations + 1e-6
        assert 0 < pattern.num_read < len(pattern.letters)
        assert pattern.letters.startswith("C" * (pattern.order + 1))
        assert pattern.letters.endswith("C")
        table = pattern.schedule("taylor", "all").resolve(["a", "b"])
        assert table.num_steps == len(pattern.letters)
        assert table.orders.max() == pattern.order


@settings(max_examples=50, deadline=None)
@given(computed=st.integers(4, 12), read=st.integers(1, 8), order=st.integers(0, 2))
def test_moves_shift_one_step_and_cost_the_same(computed, read, order):
    pattern = Pattern.spread(computed, read, order)
    assert sorted(pattern.letters) == sorted("C" * computed + "FR"[order == 0] * read)
    for moved in pattern.moves():
        pairs = list(zip(moved.letters, pattern.letters, strict=True))
        assert sum(a != b for a, b in pairs) == 2
        assert sorted(moved.letters) == sorted(pattern.letters)
        moved.schedule("taylor", "all").resolve(["a"])


# ---- the search --------------------------------------------------------------------------


def test_a_search_finds_a_solver_and_says_what_each_part_is_worth(pipe, found):
    before = type(pipe.scheduler), pipe.transformer
    assert found.scheduler is not None
    assert found.teacher == "DPM-Solver++ (2M), 12 steps"
    assert found.num_steps == found.scheduler.num_steps >= 5
    assert {f"{part} alone" for part in PARTS[:3]} <= set(found.ablation)
    assert found.ablation["solver without reuse"] > found.ablation["neither"] + 1
    assert found.point.ms <= found.front.full_ms * (1 + 1e-9)
    assert found.point.held_out_db == found.ablation.get(
        "all", found.ablation["solver without reuse"]
    )
    assert "solver without reuse" in str(found)
    assert (type(pipe.scheduler), pipe.transformer) == before


def test_held_out_pictures_are_judged_by_their_own(pipe, found):
    job = PipelineJob(pipe, tuple(INPUTS), HELD_OUT_SEEDS, 0, 2, {"guidance_scale": 1.5})
    denoiser = dqar_fx.transform(pipe.transformer, found.schedule)
    pictures = run_with(job, found.scheduler, found.num_steps, denoiser)
    right = TEACHER.pictures(job)
    assert psnr(right, pictures) == pytest.approx(found.point.held_out_db, abs=1e-4)


def test_a_search_goes_on_where_it_was_stopped(pipe, found, folder, monkeypatch):
    fits = []
    fit = solver_search.Student.fit
    monkeypatch.setattr(
        solver_search.Student, "fit", lambda *a, **k: fits.append(1) or fit(*a, **k)
    )
    again = optimise(pipe, INPUTS, folder=folder, **ASKED)
    assert not fits
    assert str(again) == str(found)
    assert again.scheduler.config == found.scheduler.config


def test_what_parts_are_worth_is_judged_anew_on_other_pictures(pipe, found, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = optimise(pipe, INPUTS, folder=tmp_path, judged_on=[3, 4], **ASKED)
    assert other.scheduler.config == found.scheduler.config
    assert other.ablation.keys() == found.ablation.keys()
    assert other.ablation["neither"] != found.ablation["neither"]


def test_one_folder_sets_a_pipeline_up(found, folder):
    pipe = reference_pipeline()
    loaded = Optimum.load(folder)
    assert loaded.table == found.table
    assert loaded.ablation == found.ablation
    assert {p.suffix for p in folder.glob("front.*")} == {".json", ".safetensors"}
    enabled = loaded.enable(pipe)
    run = {"num_inference_steps": loaded.num_steps, "output_type": "np"}
    images = enabled(INPUTS, generator=torch.Generator().manual_seed(3), **run).images
    (log,) = dqar_fx.summary(enabled).runs
    assert (log.first, log.last, log.length) == (0, loaded.num_steps - 1, loaded.num_steps)
    dqar_fx.disable(enabled)
    denoiser = dqar_fx.transform(pipe.transformer, found.schedule)
    pipe.transformer = denoiser
    again = pipe(INPUTS, generator=torch.Generator().manual_seed(3), **run).images
    assert np.array_equal(images, again)


def test_weights_of_another_model_are_refused_also_from_a_folder(pipe, tmp_path, found):
    letters = "CC" + "F" * (found.num_steps - 2)
    schedule = dqar_fx.fit_forecasts(
        pipe,
        INPUTS,
        dqar_fx.Schedule.from_actions(letters, orders=1),
        sites="transformer_blocks.0.ff",
        guidance_scale=1.5,
    )
    point = replace(found.point, schedule=schedule, scheduler=None)
    front = replace(found.front, points=(point,), sites=("transformer_blocks.0.ff",))
    Optimum(point, front).save(tmp_path)
    loaded = Optimum.load(tmp_path)
    other = reference_pipeline()
    with torch.no_grad():
        other.transformer.transformer_blocks[0].ff.net[2].weight += 1
    scheduler = other.scheduler
    with pytest.raises(ScheduleError, match="another"):
        loaded.enable(other)
    assert other.scheduler is scheduler


# ---- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluations": None}, "needs a time"),
        ({"ms": 3.0}, "one budget in two"),
        ({"evaluations": -1}, "positive number"),
        ({"evaluations": True}, "positive number"),
        ({"teacher": "DDIM"}, "dqar_fx.Teacher"),
        ({"quality": 30.0}, "quality= is for a search without a teacher"),
        ({"num_steps": 8}, "num_steps= is for a search without a teacher"),
        ({"rounds": 0}, "rounds"),
        ({"trials": 0}, "trials"),
        ({"judged_on": "a cat"}, "several prompts"),
        ({"generator": 3}, "generator"),
    ],
)
def test_wrong_budgets_and_arguments_are_refused_at_once(pipe, changes, message):
    with pytest.raises(ScheduleError, match=message):
        optimise(pipe, INPUTS, **{**ASKED, **changes})


def test_a_time_too_short_says_how_much_is_needed(pipe, folder, found):
    with pytest.raises(ScheduleError, match="evaluations=2"):
        optimise(pipe, INPUTS, folder=folder, **{**ASKED, "evaluations": 1.5})


def test_a_damaged_folder_is_refused(folder, found, tmp_path):
    with pytest.raises(ScheduleError, match="no front can be read"):
        Optimum.load(tmp_path)
    found.save(tmp_path)
    (tmp_path / "optimum.json").write_text(json.dumps({"point": 7}))
    with pytest.raises(ScheduleError, match="no optimum can be read"):
        Optimum.load(tmp_path)
