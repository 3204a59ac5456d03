"""Calibration leaves pipeline, model and random numbers as they were; its progress bar."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler

from dqar_fx import calibrate
from tests.helpers.calibration_oracle import change_by_hand, entropy_by_hand, of_stream, record
from tests.helpers.random_calibrations import assert_same
from tests.helpers.toy_pipeline import QUIET, Pipeline, make_toy


def test_calibrate_pictures_and_calls_are_those_without_it():
    plain, probed = Pipeline(streams=("cond", "uncond")), Pipeline(streams=("cond", "uncond"))
    record(plain, [1, 2, 5], 4, batch_size=2, gain=0.7)
    calibrate(probed, [1, 2, 5], num_steps=4, batch_size=2, gain=0.7, **QUIET)
    assert probed.calls == plain.calls
    for one, other in zip(probed.pictures, plain.pictures, strict=True):
        assert torch.equal(one, other)


def test_calibrate_seed_chooses_noise_and_cells():
    pictures, found = [], []
    for seed in (0, 0, 3):
        pipe = Pipeline()
        found.append(calibrate(pipe, [1], num_steps=8, cells_per_step=1, seed=seed, **QUIET))
        pictures.append(pipe.pictures[0])
    assert_same(found[0], found[1])
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert not np.array_equal(found[0].cells.site, found[2].cells.site)


def test_calibrate_is_repeatable_where_the_scheduler_draws_its_own_numbers():
    pipe = Pipeline(DDPMScheduler(clip_sample=False))  # it is given no generator, as in DiT's
    given = {"num_steps": 4, "cells_per_step": 1}
    assert_same(calibrate(pipe, [1], **given, **QUIET), calibrate(pipe, [1], **given, **QUIET))


def test_calibrate_leaves_random_numbers_alone():
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(2), np.random.rand(2)
    pipe = Pipeline()
    torch.manual_seed(7)
    np.random.seed(7)
    calibrate(pipe, [1], num_steps=3, **QUIET)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


def test_calibrate_model_is_as_before():
    pipe = Pipeline()
    model = pipe.transformer.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(pipe, [1], num_steps=3, **QUIET)
    assert pipe.transformer is model
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("is_set", [False, True], ids=["fresh", "set"])
def test_calibrate_scheduler_is_as_before(is_set):
    pipe = Pipeline()
    if is_set:
        pipe.scheduler.set_timesteps(9)
    scheduler, before = pipe.scheduler, state_of(pipe.scheduler)
    calibrate(pipe, [1], num_steps=3, **QUIET)
    assert pipe.scheduler is scheduler
    assert state_of(scheduler) == before


def state_of(scheduler):
    return {name: repr(value) for name, value in vars(scheduler).items()}


class Broken(Pipeline):
    """Fails in the middle."""

    def ask(self, stream, latent, timestep, text):
        if len(self.calls) == 4:
            raise KeyboardInterrupt
        return super().ask(stream, latent, timestep, text)


def test_calibrate_pipeline_that_fails_is_as_before():
    pipe = Broken()
    model, configs = pipe.transformer, []
    pipe._progress_bar_config = {"desc": "own"}
    pipe.set_progress_bar_config = lambda **config: set_config(pipe, config, configs)
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, [1], num_steps=6, **QUIET)
    assert pipe.transformer is model
    assert configs == [{"desc": "own", "disable": True}, {"desc": "own"}]
    assert pipe._progress_bar_config == {"desc": "own"}
    pipe.calls.clear()
    assert calibrate(pipe, [1], num_steps=3, **QUIET).num_steps == 3


def set_config(pipe, config, seen):
    pipe._progress_bar_config = config
    seen.append(config)


def test_calibrate_compiled_transformer_is_put_back_as_it_was():
    pipe = Pipeline()
    plain = calibrate(pipe, [1], num_steps=3, **QUIET)
    pipe.transformer = compiled = torch.compile(pipe.transformer)
    assert_same(calibrate(pipe, [1], num_steps=3, **QUIET), plain)
    assert pipe.transformer is compiled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_calibrate_half_precision_model_is_measured_in_float32(dtype):
    pipe = Pipeline(streams=("cond", "uncond"))
    pipe.transformer.to(dtype)
    calibration = calibrate(
        pipe, [1, 2], num_steps=4, max_age=2, cells_per_step=2, compare_kv=True, **QUIET
    )
    (calls,) = record(pipe, [1, 2], 4)
    streams = [of_stream(pipe, calls, name) for name in pipe.streams]
    change = np.mean([change_by_hand(steps, 2) for steps in streams], axis=0)
    entropy = np.mean([entropy_by_hand(steps) for steps in streams], axis=0)
    np.testing.assert_allclose(calibration.change, change, rtol=1e-4)
    np.testing.assert_allclose(calibration.entropy, entropy, rtol=1e-3)
    arrays = calibration.snr, calibration.entropy, calibration.change
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}
    calibration.fingerprint.refuse_other(make_toy(), "this")


# ---- the progress bar --------------------------------------------------------------------


class Bar:
    """Counts."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, *, total, desc, disable):
        self.total, self.desc, self.disable = total, desc, disable
        self.count, self.is_open = 0, False
        self.made.append(self)

    def __enter__(self):
        self.is_open = True
        return self

    def __exit__(self, *_):
        self.is_open = False

    def update(self):
        assert self.is_open
        self.count += 1


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(sys.modules["dqar_fx.calibration.calibrate"], "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("streams", [("cond",), ("cond", "uncond")])
def test_calibrate_bar_counts_each_step_of_each_batch_once(bars, streams, progress):
    pipe = Pipeline(streams=streams)
    given = {"num_steps": 4, "batch_size": 2, "cells_per_step": 0, "progress": progress}
    calibrate(pipe, [1, 2, 5], **given)
    (bar,) = bars
    assert (bar.desc, bar.disable) == ("calibrate", not progress)
    assert bar.count == bar.total == 8
    assert not bar.is_open


def test_calibrate_bar_counts_calls_of_a_scheduler_that_makes_several(bars):
    calibrate(Pipeline(PNDMScheduler()), [1], num_steps=6, cells_per_step=0)
    (bar,) = bars
    assert bar.count == bar.total == 15


def test_calibrate_bar_is_closed_where_the_pipeline_fails(bars):
    with pytest.raises(KeyboardInterrupt):
        calibrate(Broken(), [1], num_steps=6)
    assert (bars[0].count, bars[0].is_open) == (3, False)
