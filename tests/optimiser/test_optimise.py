"""The search for a schedule, on the reference pipeline with few steps and pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import dqar_fx
from dqar_fx import DqarError, Guidance, Schedule, ScheduleError
from dqar_fx.optimiser import Front, measure_model, optimise
from dqar_fx.optimiser.step_costs import share_savings
from dqar_fx.optimiser.trials import PipelineJob, ScheduleTrials, psnr
from tests.helpers.error_models import reference_pipeline
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.slow

STEPS = 8
INPUTS = [1, 8]
FITTED = ["plain", "fitted"]
CALL = {"num_steps": STEPS, "max_age": 3, "progress": False, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def pipe():
    return reference_pipeline()


@pytest.fixture(scope="module", params=slow_but(False, of=[False, True]), ids=FITTED)
def call(request, tmp_path_factory):
    """How the search is called: with the methods' weights, or with fitted ones."""
    folder = tmp_path_factory.mktemp("optimise")
    return {"trials": 14, "fit": request.param, "folder": folder, **CALL}


@pytest.fixture(scope="module")
def optimum(pipe, call):
    return optimise(pipe, INPUTS, **call)


def generate(pipe, transformer, seed):
    """Pictures as a user generates them, each with a generator of its own."""
    own, pipe.transformer = pipe.transformer, transformer
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(INPUTS))]
    try:
        return pipe(
            INPUTS,
            generator=generators,
            num_inference_steps=STEPS,
            guidance_scale=1.5,
            output_type="np",
        ).images
    finally:
        pipe.transformer = own


def test_optimise_front_is_sorted_and_nothing_in_it_is_beaten(optimum):
    points = optimum.front.points
    assert len(points) >= 3
    assert np.all(np.diff([p.ms for p in points]) > 0)
    assert np.all(np.diff([p.psnr_db for p in points]) > 0)
    assert all(p.held_out_db is not None for p in points)
    assert points[0].ms < optimum.front.full_ms


def test_optimise_qualities_are_those_that_a_user_gets(pipe, optimum):
    for seeds, attribute in (((0, 500_000), "psnr_db"), ((1_000_000,), "held_out_db")):
        denoiser = dqar_fx.transform(pipe.transformer, optimum.schedule)
        right, found = (
            np.stack([generate(pipe, model, seed) for seed in seeds])
            for model in (pipe.transformer, denoiser)
        )
        expected = -10 * np.log10(((found - right).astype(float) ** 2).mean())
        assert getattr(optimum.point, attribute) == pytest.approx(expected, abs=0.01)
        assert denoiser.table == optimum.table
        assert denoiser.cache_bytes == optimum.point.cache_bytes


def test_optimise_leaves_the_pipeline_as_it_was(pipe, optimum):
    del optimum
    assert type(pipe.transformer).__name__ == "DiTTransformer2DModel"
    assert not isinstance(pipe.transformer, dqar_fx.Denoiser)


def test_optimise_errors_of_cells_are_those_of_hooks(pipe, optimum):
    """One site, from values that plain hooks see in the untouched pipeline."""
    site = "transformer_blocks.3.attn1"
    seen = []
    module = pipe.transformer.get_submodule(site)
    handle = module.register_forward_hook(lambda *given: seen.append(given[2].double()))
    try:
        generate(pipe, pipe.transformer, 0)
    finally:
        handle.remove()
    column = optimum.measured.sites.index(site)
    for step, kept, weights in ((4, [3], [1.0]), (5, [3, 1], [2.0, -1.0])):
        forecast = sum(w * seen[s] for w, s in zip(weights, kept, strict=True))
        expected = (forecast - seen[step]).norm() / seen[step].norm()
        found = optimum.measured.site_errors(step, kept, len(kept) - 1, "taylor")[column]
        assert found == pytest.approx(expected.item(), rel=1e-4)


def test_optimise_goes_on_where_it_was_and_gives_the_same(pipe, call, optimum, monkeypatch):
    monkeypatch.setattr(ScheduleTrials, "psnr", known_only(ScheduleTrials.psnr))
    again = optimise(pipe, INPUTS, **call)
    assert str(again.front) == str(optimum.front)
    assert again.table == optimum.table


def known_only(psnr_of):
    """Fails where a table would have to be tried again."""

    def known(self, *given):
        before = dict(self.known)
        found = psnr_of(self, *given)
        assert self.known == before
        return found

    return known


def test_optimise_says_why_of_every_cell(optimum):
    table = optimum.table
    for step in range(1, STEPS):
        for site in range(len(table.sites)):
            assert "predicted error" in table.why(step, site)
    assert table.why(0, 0).endswith("nothing is kept yet")


def test_front_saves_and_loads(optimum, tmp_path):
    optimum.front.save(tmp_path)
    again = Front.load(tmp_path)
    assert str(again) == str(optimum.front)
    for one, other in zip(again.points, optimum.front.points, strict=True):
        assert again.table(one) == optimum.front.table(other)
        assert again.table(one).why(3, 2) == optimum.front.table(other).why(3, 2)
    facts = json.loads((tmp_path / "front.json").read_text())
    assert [p["psnr_db"] for p in facts["points"]] == [p.psnr_db for p in again.points]


def test_front_knows_the_noise_of_its_steps_and_may_be_resampled(pipe, optimum, tmp_path):
    noise = tuple(dqar_fx.signal_to_noise(pipe.scheduler, STEPS).tolist())
    assert optimum.table.noise == noise
    with pytest.raises(ScheduleError, match=f"{STEPS} steps, but the run has {STEPS + 3}"):
        optimum.schedule.for_run(STEPS + 3)
    points = [p for p in optimum.front.points if not p.schedule.rule.weights]
    loose = replace(points[0], schedule=replace(points[0].schedule, resample=True))
    replace(optimum.front, points=(loose,)).save(tmp_path)
    (again,) = Front.load(tmp_path).points
    levels = dqar_fx.signal_to_noise(pipe.scheduler, STEPS + 3)
    found, expected = (
        each.schedule.for_run(STEPS + 3, noise=levels).resolve(optimum.front.sites)
        for each in (again, loose)
    )
    assert found == expected
    assert "predicted error" in found.why(STEPS, 0)


def test_front_that_is_damaged_rejected(tmp_path):
    (tmp_path / "front.json").write_text('{"points": [{}]}')
    with pytest.raises(ScheduleError, match="no front can be read"):
        Front.load(tmp_path)


def test_front_within_budgets(optimum):
    points = optimum.front.points
    assert optimum.front.within(ms=points[1].ms) == points[1]
    assert optimum.front.within(quality=points[1].psnr_db) == points[1]
    least = min(point.cache_bytes for point in points)
    assert optimum.front.within(ms=1e9, cache_bytes=least).cache_bytes == least
    with pytest.raises(ScheduleError, match=r"no table was found within ms=0\.001"):
        optimum.front.within(ms=1e-3)


def test_front_plots(optimum, tmp_path):
    for ending in ("png", "svg"):
        path = tmp_path / f"front.{ending}"
        optimum.front.plot(path)
        assert path.stat().st_size > 1000


@pytest.mark.slow
def test_optimise_within_a_time_keeps_to_it(pipe, call, optimum):
    ms = 0.6 * optimum.front.full_ms
    found = optimise(pipe, INPUTS, ms=ms, **(call | {"trials": 4}))
    assert found.point.ms <= ms
    assert found.front.full_ms == optimum.front.full_ms


@pytest.mark.slow
def test_optimise_with_guidance_as_an_axis(pipe, tmp_path, monkeypatch):
    """Of given costs, so that the machine does not decide who is in the front."""

    def costs(_trials, kinds, _num_steps, _forecast, guidance=None):
        step_ms = 10.0 if guidance is None else 5.0
        return step_ms, np.full(len(kinds), 0.9 * step_ms / len(kinds))

    monkeypatch.setattr(measure_model, "measure_costs", costs)
    guidances = [
        Guidance(
            output=Schedule.interval(STEPS, every).forecast(1),
            keep="difference",
            batched="conditional_first",
        )
        for every in (2, 3)
    ]
    found = optimise(
        pipe, INPUTS, trials=21, guidances=guidances, folder=tmp_path, fit=False, **CALL
    )
    chosen = [point.guidance for point in found.front.points]
    assert any(each in guidances for each in chosen)
    point = next(p for p in found.front.points if p.guidance in guidances)
    denoiser = dqar_fx.transform(pipe.transformer, point.schedule, guidance=point.guidance)
    right, other = (
        np.stack([generate(pipe, model, seed) for seed in (0, 500_000)])
        for model in (pipe.transformer, denoiser)
    )
    squares = (other - right).astype(float) ** 2
    assert point.psnr_db == pytest.approx(-10 * np.log10(squares.mean()), abs=0.01)
    again = Front.load(tmp_path).points[found.front.points.index(point)]
    assert np.array_equal(
        again.guidance.output_table().actions, point.guidance.output_table().actions
    )
    assert again.guidance.keep == "difference"


def test_optimise_guidances_that_disagree_rejected(pipe):
    one = Guidance(output=Schedule.interval(STEPS, 2), batched="conditional_first")
    with pytest.raises(ScheduleError, match="must agree in batched"):
        optimise(pipe, INPUTS, guidances=[one, replace(one, batched=None)], **CALL)
    own = replace(one, unconditional=Schedule.interval(STEPS, 2))
    with pytest.raises(ScheduleError, match="must not bring schedules"):
        optimise(pipe, INPUTS, guidances=[own], **CALL)


def test_optimise_refuses_a_folder_of_another_job(pipe, call, optimum):
    del optimum
    with pytest.raises(ScheduleError, match=r"holds measurements of another .*: 8 steps"):
        optimise(pipe, INPUTS, **(call | {"num_steps": 5}))
    other = reference_pipeline()
    with torch.no_grad():
        other.transformer.proj_out_1.weight.add_(1)
    with pytest.raises(ScheduleError):
        optimise(other, INPUTS, **call)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "a prompt"}, "inputs must be several"),
        ({"inputs": []}, "inputs must be several"),
        ({"orders": (0, 7)}, "orders must be among 0 to 3"),
        ({"orders": (1, 2)}, "lacks 0"),
        ({"method": "cubic"}, "'cubic' is unknown"),
        ({"ms": -1.0}, "ms must be a positive number"),
        ({"quality": float("nan")}, "quality must be a positive number"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
    ],
)
def test_optimise_wrong_arguments_rejected(pipe, changes, message):
    given = {"inputs": INPUTS, **CALL} | changes
    with pytest.raises(ScheduleError, match=message):
        optimise(pipe, given.pop("inputs"), **given)


def test_optimise_of_no_pipeline_rejected(pipe):
    with pytest.raises(DqarError, match="expected a diffusers pipeline"):
        optimise(pipe.transformer, INPUTS)


def test_optimise_sites_inside_of_others_rejected(pipe):
    with pytest.raises(ScheduleError, match="errors do not add up"):
        optimise(pipe, INPUTS, sites=["block", "all"], **CALL)


def test_psnr_is_of_all_pictures_together():
    right = torch.zeros(2, 3, 3, 1)
    other = torch.stack([torch.full((3, 3, 1), 0.1), torch.full((3, 3, 1), 0.01)])
    assert psnr(right, other) == pytest.approx(-10 * np.log10(0.00505), abs=1e-4)


def test_job_pictures_do_not_depend_on_batches(pipe):
    jobs = [PipelineJob(pipe, (1, 8, 2), 5, 2, size, {}) for size in (1, 3)]
    one, three = (job.run(pipe.transformer) for job in jobs)
    assert torch.allclose(one, three, atol=1e-4)


def test_share_savings_kinds_together_save_what_all_save():
    names, kinds = ["self", "feed_forward"], ["self", "feed_forward"] * 3
    saved = {frozenset(names): 9.0, frozenset({"self"}): 3.0}
    assert share_savings(saved, kinds, names).tolist() == [1.0, 2.0] * 3


@pytest.mark.slow
def test_measured_of_blocks_keeps_what_they_add(pipe):
    call = CALL | {"num_steps": 6}
    found = optimise(pipe, [1], sites="block", trials=7, fit=False, **call)
    assert set(found.measured.kinds) == {"block"}
    assert found.schedule.sites == "block"
