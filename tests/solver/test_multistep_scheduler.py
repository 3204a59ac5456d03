"""A scheduler of given numbers: classical solvers, exactness, files, pipelines, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import MultistepScheduler, OptionError, Schedule
from dqar_fx.solver.multistep_scheduler import dpm_solver_weights
from dqar_fx.solver.noise_levels import NoiseLevels
from tests.helpers.error_models import reference_pipeline

DIFFUSION = NoiseLevels.of(DDPMScheduler())
FLOW = NoiseLevels.of(FlowMatchEulerDiscreteScheduler())
PREDICTIONS = ("epsilon", "v_prediction", "sample")
WHOLE = np.array([999.0, 850, 640, 500, 320, 180, 60, 10])


def denoise(sample, timestep):
    """Any smooth function of a sample and its timestep."""
    return torch.tanh(sample * (0.5 + timestep / 2000)) + 0.1 * sample.roll(1, -1)


def run(scheduler, steps, fn=denoise, seed=0):
    scheduler.set_timesteps(steps)
    sample = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        output = fn(sample, float(timestep))
        sample = scheduler.step(output, timestep, sample).prev_sample
    return sample


def first_order(levels, grid):
    return MultistepScheduler.of(levels, grid, np.zeros((len(grid), 0)))


# ---- against schedulers of diffusers -----------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers', with numpy 2
def test_its_own_weights_are_those_of_dpm_solver(prediction):
    other = DPMSolverMultistepScheduler(
        prediction_type=prediction, final_sigmas_type="zero", euler_at_final=True
    )
    levels = NoiseLevels.of(DDPMScheduler(prediction_type=prediction))
    set_timesteps = other.set_timesteps
    other.set_timesteps = lambda _: set_timesteps(timesteps=WHOLE.astype(int))
    right, found = run(other, 8), run(MultistepScheduler.of(levels, WHOLE), 8)
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_weights_it_is_ddim(prediction):
    other = DDIMScheduler(
        prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
    )
    levels = NoiseLevels.of(other)
    other.set_timesteps(10)
    grid = other.timesteps.double().numpy()
    right, found = run(other, 10), run(first_order(levels, grid), 10)
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)


def test_without_weights_it_is_euler_of_flow_matching():
    other = FlowMatchEulerDiscreteScheduler(shift=3.0)
    other.set_timesteps(10)
    grid = other.timesteps.double().numpy()
    right, found = run(other, 10), run(first_order(NoiseLevels.of(other), grid), 10)
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_constant_prediction_is_reached_by_any_numbers(levels, data):
    steps = data.draw(st.integers(1, 6))
    gaps = np.array(data.draw(st.lists(st.floats(0.1, 1), min_size=steps, max_size=steps)))
    grid = levels.last * (1 - np.append(0, gaps.cumsum()[:-1]) / gaps.sum())
    weights = np.array(
        [data.draw(st.lists(st.floats(-2, 2), min_size=2, max_size=2)) for _ in range(steps)]
    )
    goal = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))

    def point_at(sample, timestep):
        alpha, sigma = (float(each[0]) for each in levels.at([timestep]))
        noise = (sample - alpha * goal) / sigma
        return noise - goal if levels.is_flow else noise

    found = run(MultistepScheduler.of(levels, grid, weights), steps, point_at)
    assert torch.allclose(found, goal, atol=2e-3)


@pytest.mark.parametrize("levels", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_its_noise_is_known_as_that_of_other_schedulers(levels):
    grid = levels.even_timesteps(5)
    found = dqar_fx.signal_to_noise(MultistepScheduler.of(levels, grid), 5)
    alphas, sigmas = levels.at(grid)
    assert np.allclose(found, (alphas / sigmas) ** 2, rtol=1e-5)


def test_order_of_convergence_is_two():
    errors = []
    right = run(MultistepScheduler.of(DIFFUSION, DIFFUSION.even_ratios(400)), 400)
    for steps in (20, 40):
        found = run(MultistepScheduler.of(DIFFUSION, DIFFUSION.even_ratios(steps)), steps)
        errors.append(float((found - right).norm()))
    assert errors[0] > 2.8 * errors[1]


# ---- noise levels ------------------------------------------------------------------------


def test_levels_at_whole_timesteps_are_the_schedulers():
    scheduler = DDPMScheduler()
    alphas, sigmas = DIFFUSION.at([0, 500, 999])
    right = scheduler.alphas_cumprod[[0, 500, 999]].double().sqrt().numpy()
    assert np.allclose(alphas, right)
    assert np.allclose(alphas**2 + sigmas**2, 1)
    alphas, sigmas = FLOW.at([250.0, 1000.0])
    assert (alphas.tolist(), sigmas.tolist()) == ([0.75, 0.0], [0.25, 1.0])


@pytest.mark.parametrize("levels", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_even_grids_begin_with_noise_and_end_before_data(levels):
    for grid in (levels.even_timesteps(7), levels.even_ratios(7)):
        assert grid[0] == pytest.approx(levels.last)
        assert (np.diff(np.append(grid, 0)) < 0).all()
        assert np.isfinite(dpm_solver_weights(levels, grid)).all()
    ratios = levels.log_ratio(levels.even_ratios(7))[1:]
    assert np.allclose(np.diff(ratios), np.diff(ratios)[0])


def test_schedulers_that_do_not_say_what_a_model_was_trained_for_are_refused():
    class Silent:
        config = {"prediction_type": "epsilon"}  # noqa: RUF012

    with pytest.raises(OptionError, match="Silent with prediction_type='epsilon'"):
        NoiseLevels.of(Silent())
    assert NoiseLevels.of(EulerDiscreteScheduler()).prediction == "epsilon"


# ---- files and pipelines -----------------------------------------------------------------


def test_it_is_saved_and_loaded_as_schedulers_are(tmp_path):
    made = MultistepScheduler.of(DIFFUSION, WHOLE)
    made.save_pretrained(tmp_path)
    loaded = MultistepScheduler.from_pretrained(tmp_path)
    assert torch.equal(run(made, 8), run(loaded, 8))
    assert loaded.config.num_train_timesteps == len(loaded) == 1000


def test_a_pipeline_is_saved_and_loaded_with_it(tmp_path):
    pipe = reference_pipeline()
    pipe.scheduler = MultistepScheduler.of(NoiseLevels.of(pipe.scheduler), WHOLE)
    images = generate(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = DiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is MultistepScheduler
    assert np.array_equal(images, generate(loaded))


def generate(pipe):
    generator = torch.Generator().manual_seed(3)
    return pipe([1, 8], generator=generator, num_inference_steps=8, output_type="np").images


def test_a_denoiser_knows_its_steps():
    pipe = reference_pipeline()
    pipe.scheduler = MultistepScheduler.of(NoiseLevels.of(pipe.scheduler), WHOLE)
    plain = generate(pipe)
    with dqar_fx.enabled(pipe, Schedule.compute_all()):
        assert np.array_equal(generate(pipe), plain)
    with dqar_fx.enabled(pipe, Schedule.interval(every=3, warmup=2)):
        generate(pipe)
        logged = pipe.transformer.runs[-1]
        assert [call.step for call in logged.calls] == list(range(8))
        assert logged.num_reused == logged.num_promised > 0


def test_a_run_may_begin_with_a_picture():
    scheduler = MultistepScheduler.of(DIFFUSION, WHOLE)
    scheduler.set_timesteps(8)
    clean, noise = torch.randn(2, 1, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    sample = scheduler.add_noise(clean, noise, scheduler.timesteps[5:6])
    again = scheduler.scale_noise(clean, scheduler.timesteps[5:6], noise)
    alpha, sigma = DIFFUSION.at(WHOLE[5:6])
    assert torch.equal(sample, again)
    assert torch.allclose(sample, float(alpha[0]) * clean + float(sigma[0]) * noise)
    scheduler.set_begin_index(5)
    assert scheduler.begin_index == 5
    for timestep in scheduler.timesteps[5:]:
        (sample,) = scheduler.step(noise, timestep, sample, return_dict=False)
    assert scheduler.step_index == 8
    assert torch.allclose(sample, clean, atol=1e-4)


# ---- wrong input -------------------------------------------------------------------------


def test_another_number_of_steps_is_refused():
    scheduler = MultistepScheduler.of(DIFFUSION, WHOLE)
    with pytest.raises(OptionError, match=r"has 8 steps, but 9 were asked for.*=8"):
        scheduler.set_timesteps(9)
    scheduler.set_timesteps()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=1.15)  # as Flux's pipeline
    with pytest.raises(OptionError, match="timesteps of its own"):
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.5, 8))


def test_a_timestep_of_another_grid_is_refused():
    scheduler = MultistepScheduler.of(DIFFUSION, WHOLE)
    scheduler.set_timesteps(8)
    sample = torch.zeros(1, 4, 2, 2)
    with pytest.raises(OptionError, match="timestep 700 is none of this solver's"):
        scheduler.step(sample, 700, sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [9.0, 5.0]}, "2 timesteps, 3 alphas"),
        ({"grid": [9.0, 5.0, 5.0]}, "expected descending ones"),
        ({"sigmas": [0.9, 0.4, 0.0]}, "with noise left at the last"),
        ({"weights": [[], [float("nan")], []]}, "have to be finite"),
    ],
)
def test_numbers_that_are_no_solver_are_refused(changes, message):
    numbers = {
        "grid": [9.0, 5.0, 1.0],
        "alphas": [0.4, 0.9, 1.0],
        "sigmas": [0.9, 0.4, 0.1],
        "weights": [[], [0.5], []],
    }
    MultistepScheduler(**numbers)
    with pytest.raises(OptionError, match=message):
        MultistepScheduler(**numbers | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "v-prediction"}, "prediction_type"),
        ({"grid": [], "alphas": [], "sigmas": [], "weights": []}, "without timesteps"),
        ({"weights": [0.0, 0.5, 0.0]}, "a list of numbers for each step"),
        ({"alphas": [0.0, 0.9, 1.0]}, "Expected alphas above 0"),
    ],
)
def test_what_would_compute_nonsense_is_refused(changes, message):
    numbers = {
        "grid": [9.0, 5.0, 1.0],
        "alphas": [0.4, 0.9, 1.0],
        "sigmas": [0.9, 0.4, 0.1],
        "weights": [[], [0.5], []],
    }
    with pytest.raises(OptionError, match=message):
        MultistepScheduler(**numbers | changes)


def test_steps_that_there_are_not_are_refused():
    scheduler = MultistepScheduler.of(DIFFUSION, [900, 500])
    scheduler.set_timesteps(2)
    for begin in (-1, 2):
        with pytest.raises(OptionError, match="has 2 steps, from 0"):
            scheduler.set_begin_index(begin)
    sample = torch.zeros(1, 4, 2, 2)
    for timestep in scheduler.timesteps:
        scheduler.step(sample, timestep, sample)
    with pytest.raises(OptionError, match="all 2 steps of this solver are done"):
        scheduler.step(sample, 500, sample)
    with pytest.raises(OptionError, match="timesteps of its own"):
        scheduler.set_timesteps(timesteps=[900, 500])


@pytest.mark.parametrize(
    "scheduler",
    [
        IPNDMScheduler(),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        DPMSolverMultistepScheduler(use_flow_sigmas=True),
        DDIMScheduler(rescale_betas_zero_snr=True),
    ],
    ids=lambda each: type(each).__name__,
)
def test_levels_that_are_not_known_are_refused(scheduler):
    with pytest.raises(OptionError, match=r"[Ee]xpected a"):
        NoiseLevels.of(scheduler)


def test_levels_without_signal_do_for_a_prediction_of_velocity():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    made = MultistepScheduler.of(NoiseLevels.of(scheduler), WHOLE)
    assert torch.isfinite(run(made, 8)).all()


def test_noise_of_a_grid_without_much_noise_is_known():
    grid = np.array([200.0, 100, 50])
    alphas, sigmas = DIFFUSION.at(grid)
    found = dqar_fx.signal_to_noise(MultistepScheduler.of(DIFFUSION, grid), 3)
    assert np.allclose(found, (alphas / sigmas) ** 2, rtol=1e-5)
