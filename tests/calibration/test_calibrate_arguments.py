"""Calibration: what it is given, and what its errors say."""

from __future__ import annotations

import warnings

import pytest

import dqar_fx
from dqar_fx import DqarError, Schedule, ScheduleError, SiteError, calibrate
from tests.helpers.toy_pipeline import QUIET, Pipeline


class Bare:
    """Something without a transformer."""


def test_calibrate_without_a_transformer_says_what_was_found():
    with pytest.raises(DqarError) as caught:
        calibrate(Bare(), [1], **QUIET)
    assert str(caught.value) == (
        "calibration needs a diffusers pipeline with its own transformer; found Bare with a "
        "transformer of type NoneType"
    )


def test_calibrate_transformed_pipeline_says_what_was_found():
    pipe = Pipeline()
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.interval(3, 2))
    denoiser = pipe.transformer
    with pytest.raises(DqarError, match="Pipeline with a transformer that is transformed"):
        calibrate(pipe, [1], num_steps=3, **QUIET)
    assert pipe.transformer is denoiser


def test_calibrate_without_a_scheduler_is_a_dqar_error():
    pipe = Pipeline()
    model = pipe.transformer
    del pipe.scheduler
    with pytest.raises(DqarError):
        calibrate(pipe, [1], **QUIET)
    assert pipe.transformer is model


@pytest.mark.parametrize("nothing", [[], (), iter(())])
def test_calibrate_without_inputs_is_a_schedule_error(nothing):
    with pytest.raises(ScheduleError) as caught:
        calibrate(Pipeline(), nothing, **QUIET)
    assert str(caught.value) == "calibration needs at least one prompt or label"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, found 0"),
        ({"num_steps": 2.5}, "num_steps must be an integer, found 2.5"),
        ({"max_age": 0}, "max_age must be at least 1, found 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"cells_per_step": -1}, "cells_per_step must be at least 0, found -1"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_calibrate_argument_out_of_range_named(given, message):
    pipe = Pipeline()
    with pytest.raises(ScheduleError) as caught:
        calibrate(pipe, [1], **given, **QUIET)
    assert str(caught.value) == message
    assert pipe.calls == []


def test_calibrate_pattern_that_selects_nothing_is_a_site_error():
    pipe = Pipeline()
    model = pipe.transformer
    with pytest.raises(SiteError, match="selects no site"):
        calibrate(pipe, [1], num_steps=2, sites="nowhere", **QUIET)
    assert pipe.transformer is model


def test_calibrate_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(Pipeline(), [1], num_steps=2, **QUIET)
