"""Weights fitted to a model: the least squares, each step, and what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import (
    DqarError,
    MultistepScheduler,
    OptionError,
    Schedule,
    ScheduleError,
    Teacher,
    fit_forecasts,
    transform,
)
from dqar_fx.optimiser.fit_weights import solve
from dqar_fx.optimiser.teacher_states import TeacherStates, find_timesteps, recording
from dqar_fx.optimiser.trials import PipelineJob, ScheduleTrials, psnr
from dqar_fx.solver.noise_levels import NoiseLevels
from tests.helpers.error_models import reference_pipeline
from tests.helpers.hook_oracle import ForecastOracle, GivenWeights
from tests.helpers.models import make_dit

STEPS = 8
INPUTS = [1, 8, 3]
PLAIN = Schedule.interval(STEPS, 3, warmup=2).forecast(2)


@pytest.fixture(scope="module")
def pipe():
    return reference_pipeline()


@pytest.fixture(scope="module")
def fitted(pipe):
    return fit_forecasts(pipe, INPUTS, PLAIN, sites="all", seed=7, guidance_scale=1.5)


def draw(seed, size):
    """Effects of some weights, and an error."""
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(size, 40, generator=generator, dtype=torch.float64)
    return effects, torch.randn(40, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 6))
def test_solve_finds_what_makes_the_error_least(seed, size):
    effects, error = draw(seed, size)
    found = solve(effects, error)
    right = np.linalg.lstsq(effects.T.numpy(), -error.numpy(), rcond=None)[0]
    assert np.allclose(found, right, rtol=0.02, atol=0.02)  # a ridge holds them a little


def test_solve_leaves_weights_without_effect():
    effects = torch.zeros(2, 5, dtype=torch.float64)
    effects[0] = 1
    assert solve(effects, torch.ones(5, dtype=torch.float64)).tolist() == pytest.approx(
        [-1, 0], abs=1e-3
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 6))
def test_solve_changes_less_with_a_stronger_ridge(seed, size):
    effects, error = draw(seed, size)
    weak, strong, held = (
        np.linalg.norm(solve(effects, error, ridge)) for ridge in (1e-3, 1.0, 1e9)
    )
    assert weak > strong > held
    assert held == pytest.approx(0, abs=1e-6)


def test_fit_keeps_the_actions_and_brings_pictures_nearer(pipe, fitted):
    job = PipelineJob(pipe, tuple(INPUTS), 7, STEPS, len(INPUTS), {"guidance_scale": 1.5})
    denoiser = dqar_fx.transform(pipe.transformer, PLAIN, sites="all")
    trials = ScheduleTrials(job, denoiser)
    trials.capture()
    plain_db, fitted_db = (
        psnr(trials.right, trials.pictures(each)) for each in (PLAIN, fitted)
    )
    table, plain = fitted.resolve(denoiser.table.sites), denoiser.table
    assert np.array_equal(table.actions, plain.actions)
    assert np.array_equal(table.orders, plain.orders)
    assert fitted_db > plain_db
    assert table.why(3, 0).endswith(plain.why(3, 0).rpartition(", ")[2])
    assert "weights [" in table.why(3, 0)


def test_fit_is_deterministic(pipe, fitted):
    rule = Schedule.interval(every=3, warmup=2).forecast(2)
    again = fit_forecasts(
        pipe, INPUTS, rule, sites="all", num_steps=STEPS, seed=7, guidance_scale=1.5
    )
    assert again.rule.letters == fitted.rule.letters
    assert np.allclose(again.rule.weights, fitted.rule.weights, rtol=1e-2, atol=1e-2)


def guided(difference):
    """What guidance of 1.5 makes of an output's error."""
    conditional, unconditional = difference[:, :4].chunk(2)
    return unconditional + 1.5 * (conditional - unconditional)


class Watched(torch.nn.Module):
    """Runs a fitted table with hooks, and compares its forecasts with the method's."""

    def __init__(self, model, fitted, plain):
        super().__init__()
        self.model, self.config, self.step = model, model.config, 0
        self.fitted, self.plain = GivenWeights(model, fitted), ForecastOracle(model, plain)
        self.plain.kept = self.fitted.kept
        self.errors = []

    dtype = torch.float32
    device = torch.device("cpu")

    def forward(self, hidden_states, **given):
        given = {"hidden_states": hidden_states, **given}
        right, step = self.model(**given).sample, self.step
        found = self.fitted(step, **given)
        if self.plain.table.orders[step].any():
            other = self.plain(step, **given)
            self.errors.append((guided(found - right).norm(), guided(other - right).norm()))
        self.step += 1
        return SimpleNamespace(sample=found)


@pytest.mark.slow
def test_fit_comes_nearer_at_each_step_than_the_method(pipe, fitted):
    paths = dqar_fx.transform(pipe.transformer, PLAIN, sites="all")
    pipe_job = PipelineJob(pipe, tuple(INPUTS), 7, STEPS, len(INPUTS), {"guidance_scale": 1.5})
    ScheduleTrials(pipe_job, paths).capture()
    sites = paths.table.sites
    watched = Watched(pipe.transformer, fitted.resolve(sites), PLAIN.resolve(sites))
    pipe_job.run(watched)
    assert len(watched.errors) == int((paths.table.orders[:, 0] > 0).sum())
    assert all(own <= 1.001 * other for own, other in watched.errors)
    assert sum(own for own, _ in watched.errors) < 0.9 * sum(o for _, o in watched.errors)


def test_fit_refuses_another_model(fitted):
    with pytest.raises(ScheduleError, match="the fitted forecast was measured on another"):
        dqar_fx.transform(make_dit(layers=1).model, fitted)


@pytest.mark.parametrize(
    ("schedule", "change", "error", "message"),
    [
        (Schedule.interval(STEPS, 3), {}, ScheduleError, "forecasts nothing"),
        (PLAIN, {"transformer": None}, DqarError, "expected a diffusers pipeline"),
        (PLAIN, {"scheduler": None}, DqarError, "expected a scheduler"),
    ],
)
def test_fit_refuses_what_cannot_be_fitted(pipe, schedule, change, error, message):
    facts = {"transformer": pipe.transformer, "scheduler": pipe.scheduler} | change
    given = pipe if not change else SimpleNamespace(**facts)
    with pytest.raises(error, match=message):
        fit_forecasts(given, INPUTS, schedule, guidance_scale=1.5)


class TwiceAsLong:
    """A scheduler of second order: two timesteps per step."""

    def set_timesteps(self, num_steps):
        self.timesteps = list(range(2 * num_steps - 1))


def test_fit_refuses_a_schedule_of_another_length(pipe):
    scheduler = TwiceAsLong()
    given = SimpleNamespace(transformer=pipe.transformer, scheduler=scheduler)
    with pytest.raises(ScheduleError, match="has 8 steps, but"):
        fit_forecasts(given, INPUTS, PLAIN)


def test_fit_refuses_no_number_of_steps(pipe):
    rule = Schedule.interval(every=3, warmup=2).forecast(2)
    with pytest.raises(ScheduleError, match="say how many the pipeline shall run"):
        fit_forecasts(pipe, INPUTS, rule)
    with pytest.raises(ScheduleError, match="num_steps must be at least 1, found 0"):
        fit_forecasts(pipe, INPUTS, rule, num_steps=0)
    with pytest.raises(
        ScheduleError, match=r"has 8 steps, but .* makes 9 evaluations of 9 steps"
    ):
        fit_forecasts(pipe, INPUTS, PLAIN, num_steps=9)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_fit_refuses_a_ridge_that_is_none(pipe, ridge):
    with pytest.raises(ScheduleError, match="expected a number above 0"):
        fit_forecasts(pipe, INPUTS, PLAIN, ridge=ridge, guidance_scale=1.5)


def test_fit_to_what_a_format_keeps_has_other_weights(pipe, fitted):
    given = {"sites": "all", "seed": 7, "guidance_scale": 1.5}
    rounded = fit_forecasts(pipe, INPUTS, PLAIN, cache="int8", **given)
    weights = [np.array(each.rule.weights) for each in (fitted, rounded)]
    assert weights[0].shape == weights[1].shape
    assert not np.allclose(*weights, atol=1e-3)
    with pytest.raises(OptionError, match="cache='int3' is unknown"):
        fit_forecasts(pipe, INPUTS, PLAIN, cache="int3", **given)


def test_fit_refuses_no_inputs(pipe):
    with pytest.raises(ScheduleError, match="several prompts or labels"):
        fit_forecasts(pipe, [], PLAIN)


# ---- towards a teacher -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler],
    ids=lambda kind: kind.__name__,
)
def test_timesteps_of_samples_are_those_of_their_noise(scheduler):
    pipe = reference_pipeline()
    levels = NoiseLevels.of(pipe.scheduler)
    own = scheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    found = find_timesteps(own, levels, 8)
    own.set_timesteps(8)
    assert np.allclose(found, own.timesteps, atol=0.6)  # told timesteps are rounded


def test_a_teacher_is_where_the_solver_itself_is_with_as_many_steps():
    """The states of a teacher that has no more steps than the solver are the solver's own."""
    pipe = reference_pipeline()
    levels = NoiseLevels.of(pipe.scheduler)
    solver = MultistepScheduler.of(levels, levels.even_ratios(5))
    job = PipelineJob(pipe, (1, 8), 0, 5, 2, {"guidance_scale": 1.5})
    states = TeacherStates.of(Teacher(5), job, copy.deepcopy(solver)).states
    seen = []
    solver.step = recording(solver.step, seen.append)
    job.run(pipe.transformer, solver)
    assert len(states) == len(seen) == 5
    for one, other in zip(states, seen, strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_forecasts_that_are_fitted_to_a_teacher_are_nearer_to_it():
    pipe = reference_pipeline()
    teacher, schedule = Teacher(40), Schedule.from_actions("CCCFCFCFCFCC", orders=2)
    fitted_on = {"sites": "all", "num_steps": 12, "guidance_scale": 1.5}
    schedules = {
        "not": schedule,
        "to the model": fit_forecasts(pipe, [1, 8, 5], schedule, **fitted_on),
        "to the teacher": fit_forecasts(
            pipe, [1, 8, 5], schedule, teacher=teacher, **fitted_on
        ),
    }
    job = PipelineJob(pipe, (1, 8, 5), 70, 12, 3, {"guidance_scale": 1.5})
    right = teacher.pictures(job)
    found = {
        name: psnr(right, job.run(transform(pipe.transformer, each, sites="all")))
        for name, each in schedules.items()
    }
    assert found["to the teacher"] > found["to the model"] + 0.5
    assert found["to the teacher"] > found["not"] + 0.5


@pytest.mark.filterwarnings("ignore:__array")  # of diffusers
def test_a_step_between_equal_noise_levels_keeps_its_weights():
    pipe = reference_pipeline()
    karras = {"timestep_spacing": "trailing", "use_karras_sigmas": True, "solver_order": 3}
    pipe.scheduler = DEISMultistepScheduler.from_config(pipe.scheduler.config, **karras)
    schedule = Schedule.from_actions("CCCFCF", orders=1)
    fitted = fit_forecasts(pipe, [1, 8], schedule, teacher=Teacher(12), guidance_scale=1.5)
    pipe.scheduler.set_timesteps(6)
    assert pipe.scheduler.sigmas[-1] == pipe.scheduler.sigmas[-2]
    weights = np.array(fitted.rule.weights)
    assert np.allclose(weights[5], [1.5, -0.5])  # a line's, one step after two that were kept
    assert not np.allclose(weights[3], weights[3][:1])


@pytest.mark.parametrize(
    ("teacher", "scheduler", "message"),
    [
        ("DDIM", None, "dqar_fx.Teacher"),
        (Teacher(20, DDIMScheduler()), None, "default one"),
        (Teacher(20), PNDMScheduler, "evaluation by evaluation"),
    ],
)
def test_what_no_teacher_can_be_aimed_at_is_refused(teacher, scheduler, message):
    pipe = reference_pipeline()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    schedule = Schedule.interval(every=2, warmup=3).forecast(1)
    with pytest.raises(ScheduleError, match=message):
        fit_forecasts(pipe, [1], schedule, num_steps=6, teacher=teacher)
