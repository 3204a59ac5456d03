"""Solvers fitted to a model: least squares, what they gain, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import (
    Action,
    DqarError,
    OptionError,
    Schedule,
    ScheduleError,
    Teacher,
    fit_solver,
)
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.optimiser.forecast_space import ForecastSpace
from dqar_fx.optimiser.levenberg_marquardt import minimise
from dqar_fx.optimiser.solver_space import SolverSpace
from dqar_fx.optimiser.student import make_student
from dqar_fx.optimiser.teacher import run_with
from dqar_fx.optimiser.trials import PipelineJob, psnr
from dqar_fx.schedule.forecast import weigh
from dqar_fx.solver.noise_levels import NoiseLevels
from tests.helpers.error_models import reference_pipeline
from tests.helpers.models import make_dit

INPUTS = [1, 8]
TEACHER = Teacher(20)
NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
QUICK = {"teacher": TEACHER, "rounds": 2, "progress": False, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def pipe():
    return reference_pipeline()


@pytest.fixture(scope="module")
def fitted(pipe):
    return fit_solver(pipe, INPUTS, 4, **QUICK)


# ---- least squares -----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 5))
def test_a_linear_problem_is_solved(seed, size):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(30, size, generator=generator, dtype=torch.float64)
    right = matrix @ torch.rand(size, generator=generator, dtype=torch.float64)
    right += 0.1 * torch.randn(30, generator=generator, dtype=torch.float64)
    found = minimise(lambda x: matrix @ torch.from_numpy(x) - right, np.zeros(size), rounds=20)
    best = np.linalg.lstsq(matrix.numpy(), right.numpy(), rcond=None)[0]
    assert np.allclose(found.parameters, best, atol=2e-2)
    least = float((matrix @ torch.from_numpy(best) - right).square().mean())
    assert found.mean_square == pytest.approx(least, rel=1e-2)


def test_a_curved_valley_is_followed_and_no_round_does_harm():
    def rosenbrock(x):
        return torch.tensor([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    seen = []
    found = minimise(
        rosenbrock,
        np.array([-1.2, 1.0]),
        rounds=60,
        nudge=1e-5,
        report=lambda _, square, __: seen.append(square),
    )
    assert seen == sorted(seen, reverse=True)
    assert found.mean_square == seen[-1] < 1e-3


def test_parameters_without_effect_stay_where_they_are():
    found = minimise(lambda x: torch.tensor([x[0] - 2.0]), np.array([0.0, 7.0]), rounds=9)
    assert found.parameters.tolist() == pytest.approx([2, 7], abs=0.05)


def test_nothing_left_to_fit_ends_a_search_and_no_numbers_are_refused():
    found = minimise(lambda x: torch.zeros(3), np.ones(2), rounds=5)
    assert (found.rounds, found.mean_square, found.parameters.tolist()) == (0, 0, [1, 1])
    with pytest.raises(ScheduleError, match="not finite"):
        minimise(lambda x: torch.full((3,), torch.nan), np.ones(2), rounds=5)
    hit = minimise(lambda x: torch.tensor([max(0.0, 1 - x[0])]), np.zeros(1), rounds=50)
    assert hit.mean_square < 1e-6


# ---- calls that are known from the run before -------------------------------------------


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_replayed_calls_change_nothing(pipe, data):
    job = PipelineJob(pipe, (1, 8, 3), 5, 5, 2, {"guidance_scale": 1.5})
    student = make_student(job, None, None, None)
    plain = replace(student, replay=None)
    vector = next(student.starts())
    for _ in range(3):
        place = data.draw(st.integers(0, len(vector) - 1))
        vector = vector + 0.05 * (np.arange(len(vector)) == place)
        assert torch.equal(student.pictures(vector, job), plain.pictures(vector, job))
    other = replace(job, seed=6)
    assert torch.equal(student.pictures(vector, other), plain.pictures(vector, other))


def test_a_change_is_felt_from_its_step_on(pipe):
    job = PipelineJob(pipe, (1, 8), 5, 5, 2, {})
    student = make_student(job, None, None, None)
    start = next(student.starts())
    student.pictures(start, job)
    calls = student.replay.num_called
    student.pictures(start, job)  # the same again
    assert (student.replay.num_called, student.replay.num_replayed) == (calls, 5)
    last_weight = start + 0.1 * (np.arange(len(start)) == len(start) - 1)
    student.pictures(last_weight, job)  # of the step into the last sample: nothing after it
    assert student.replay.num_called == calls
    told = start + 0.1 * (np.arange(len(start)) == 5 + 3)  # that of the fourth step
    student.pictures(told, job)
    assert student.replay.num_called == calls + 2


# ---- solvers as vectors ------------------------------------------------------------------


def test_vectors_are_solvers(pipe):
    levels = NoiseLevels.of(pipe.scheduler)
    space = SolverSpace(levels, 6)
    starts = list(space.starts())
    assert {len(each) for each in starts} == {6 + 6 + 5 + 4 + 3}
    first, last = (space.scheduler(each).config for each in (starts[0], starts[-1]))
    assert np.allclose(first.grid, levels.even_timesteps(6))
    assert np.allclose(last.grid, levels.even_ratios(6))
    moved = starts[0].copy()
    moved[12:] += 1
    weights = np.array(space.scheduler(moved).config.weights)
    before = np.array(first.weights)
    assert np.allclose(weights - before, [[0, 0, 0], [1, 0, 0], [1, 1, 0], *[[1, 1, 1]] * 3])


@settings(max_examples=50, deadline=None)
@given(data=st.data(), steps=st.integers(2, 9), is_flow=st.booleans())
def test_every_vector_is_a_solver_whose_timesteps_descend(data, steps, is_flow):
    kind = FlowMatchEulerDiscreteScheduler if is_flow else DDPMScheduler
    space = SolverSpace(NoiseLevels.of(kind()), steps)
    start = next(space.starts())
    numbers = st.lists(st.floats(-6, 6), min_size=len(start), max_size=len(start))
    made = space.scheduler(start + np.array(data.draw(numbers)))
    made.set_timesteps(steps)
    assert float(made.timesteps.max()) <= space.levels.last
    assert (made.timesteps.diff() < 0).all()
    assert made.sigmas[-1] == 0


# ---- fits --------------------------------------------------------------------------------


def test_a_fit_comes_nearer_to_the_teacher_on_other_seeds_too(fitted):
    assert fitted.psnr_db > fitted.start_db + 2
    assert fitted.held_out_db > fitted.held_out_start_db + 1
    assert fitted.rounds == 2
    assert "4 steps" in str(fitted)
    assert "DPM-Solver++ (2M), 20 steps" in str(fitted)


def test_what_is_said_is_what_the_solver_gives(pipe, fitted):
    before = pipe.transformer, pipe.scheduler
    job = PipelineJob(pipe, tuple(INPUTS), 0, 4, 2, {"guidance_scale": 1.5})
    found = run_with(job, fitted.scheduler, 4)
    assert psnr(TEACHER.pictures(job), found) == pytest.approx(fitted.psnr_db, abs=1e-3)
    pipe.scheduler = fitted.scheduler
    try:
        assert torch.equal(job.run(pipe.transformer), found)
    finally:
        pipe.scheduler = before[1]
    assert (pipe.transformer, pipe.scheduler) == before


def test_the_same_fit_gives_the_same_solver(pipe, fitted):
    again = fit_solver(pipe, INPUTS, 4, **QUICK)
    assert dict(again.scheduler.config) == dict(fitted.scheduler.config)


@pytest.mark.slow
def test_a_solver_is_fitted_around_a_schedule(pipe):
    schedule = Schedule.interval(6, 2).forecast(1)
    with_it = fit_solver(pipe, INPUTS, 6, schedule=schedule, sites="all", **QUICK)
    assert with_it.psnr_db > with_it.start_db + 1
    job = PipelineJob(pipe, tuple(INPUTS), 0, 6, 2, {"guidance_scale": 1.5})
    denoiser = dqar_fx.transform(pipe.transformer, with_it.schedule, sites="all")
    found = run_with(job, with_it.scheduler, 6, denoiser)
    assert psnr(TEACHER.pictures(job), found) == pytest.approx(with_it.psnr_db, abs=1e-3)
    actions = denoiser.table.actions
    assert (actions == schedule.resolve(denoiser.table.sites).actions).all()
    assert denoiser.table.weights.any()


def test_what_is_reused_has_no_weights_to_fit(pipe):
    schedule = Schedule.interval(4, 3)
    given = {**QUICK, "rounds": 1, "teacher": Teacher(6)}
    assert fit_solver(pipe, INPUTS, 4, schedule=schedule, **given).schedule is schedule


@settings(max_examples=25, deadline=None)
@given(data=st.data(), steps=st.integers(3, 9), order=st.integers(1, 3))
def test_weights_of_forecasts_are_a_vector(data, steps, order):
    texts = [f"C{''.join(data.draw(st.lists(st.sampled_from('CR'), min_size=steps)))[:steps]}"]
    texts.append(texts[0].replace("R", "C", 1))
    table = Schedule.from_actions(texts).forecast(order).resolve(("a", "b"))
    space = ForecastSpace(table, ("a", "b"), Fingerprint.of(make_dit(layers=1).model))
    same = space.schedule(np.zeros(len(space.places))).resolve(("a", "b"))
    assert (same.actions == table.actions).all()
    for step, site in np.argwhere(table.actions == Action.FORECAST):
        kept, cell = table.kept[step][site], int(table.orders[step, site])
        right = weigh(table.method, kept, step, cell)
        assert np.allclose(same.weights[step, site, : len(right)], right)
    added = np.arange(1.0, len(space.places) + 1)
    grown = space.schedule(added).resolve(("a", "b")).weights - space.weights
    for (step, place), number in zip(space.places, added, strict=True):
        found = grown[step, :, place]
        assert found.any()
        assert np.allclose(found[found != 0], number)


@NUMPY
def test_a_teacher_is_near_to_another_one(pipe):
    job = PipelineJob(pipe, tuple(INPUTS), 0, 4, 2, {"guidance_scale": 1.5})
    own = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    other = Teacher(60, own)
    assert str(other) == "DPMSolverMultistepScheduler, 60 steps"
    assert psnr(other.pictures(job), Teacher(60).pictures(job)) > 40


# ---- wrong input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_steps": 1}, ScheduleError, "num_steps"),
        ({"inputs": []}, ScheduleError, "several prompts or labels"),
        ({"rounds": 0}, ScheduleError, "rounds"),
        ({"batch_size": 0}, ScheduleError, "batch_size"),
        ({"teacher": 10}, ScheduleError, "expected a dqar_fx.Teacher"),
        ({"schedule": "CCF"}, ScheduleError, "expected a dqar_fx.Schedule"),
        (
            {"num_inference_steps": 9},
            ScheduleError,
            "num_inference_steps is what the pipeline",
        ),
        ({"sites": "all"}, ScheduleError, "sites= is for a denoiser with a schedule"),
        (
            {"schedule": Schedule.interval(9, 2)},
            DqarError,
            "9 steps for a solver of 4",
        ),
    ],
)
def test_wrong_arguments_are_refused(pipe, changes, error, message):
    given = {"inputs": INPUTS, "num_steps": 4, **QUICK, **changes}
    with pytest.raises(error, match=message):
        fit_solver(pipe, given.pop("inputs"), given.pop("num_steps"), **given)


def test_a_teacher_without_steps_is_refused():
    with pytest.raises(ScheduleError, match=r"num_steps=1.*such as 150"):
        Teacher(1)
    with pytest.raises(ScheduleError, match="expected a scheduler of diffusers"):
        Teacher(9, EulerDiscreteScheduler)


def test_a_teacher_whose_samples_a_pipeline_does_not_scale_is_refused(pipe):
    with pytest.raises(OptionError, match="DiTPipeline does not scale samples as Euler"):
        Teacher(9, EulerDiscreteScheduler()).scheduler_for(pipe)


@NUMPY
def test_a_pipeline_whose_scheduler_does_not_tell_is_refused():
    pipe = reference_pipeline()
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    del pipe.scheduler.alphas_cumprod
    with pytest.raises(OptionError, match="EulerAncestralDiscreteScheduler"):
        fit_solver(pipe, INPUTS, 4, **QUICK)
