"""Warnings: each names the line of the user's that led to it, and is given once."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

import dqar_fx
from dqar_fx import Guidance, Schedule
from dqar_fx.notices import Once, warn
from tests.helpers.models import make_dit

COLD = Schedule.from_actions("SRRR")


def lines_of(caught):
    ours = (each for each in caught if each.category is UserWarning)  # torch warns, too
    return {(each.filename, each.lineno) for each in ours}


def line_above():
    """This file, and the line before the one that asks."""
    return __file__, sys._getframe(1).f_lineno - 1


@pytest.fixture
def case():
    return make_dit(layers=1)


@pytest.mark.parametrize("compile", [None, "regional"])
def test_warning_of_a_call_names_the_line_of_the_call(case, compile):
    denoiser = dqar_fx.transform(case.model, COLD, compile=compile)
    with denoiser.cache_context("cond", step_index=0):
        denoiser(**case.inputs(0))
    inputs = {**case.inputs(1), "class_labels": torch.tensor([2, 9])}
    with denoiser.cache_context("cond", step_index=1):
        with pytest.warns(UserWarning, match="start cold") as caught:
            denoiser(**inputs)
        assert lines_of(caught) == {line_above()}


def test_warning_under_hooks_of_accelerate_names_the_line_of_the_call(case):
    denoiser = dqar_fx.transform(case.model, COLD)
    add_hook_to_module(denoiser, ModelHook())
    with denoiser.cache_context("cond", step_index=0):
        denoiser(**case.inputs(0))
    inputs = {**case.inputs(1), "class_labels": torch.tensor([2, 9])}
    with denoiser.cache_context("cond", step_index=1):
        with pytest.warns(UserWarning, match="start cold") as caught:
            denoiser(**inputs)
        assert lines_of(caught) == {line_above()}


@pytest.mark.parametrize("guidance", [None, Guidance(batched="unconditional_first")])
def test_warning_in_a_pipeline_names_the_line_that_calls_it(case, guidance):
    case.model.register_to_config(num_embeds_ada_norm=1000)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4
    ).eval()
    pipe = DiTPipeline(case.model, vae, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = dqar_fx.transform(
        case.model, Schedule.interval(5, 2), guidance=guidance
    )
    with pytest.warns(UserWarning, match="has 3 steps but the branch table 5") as caught:
        pipe([1, 2], guidance_scale=1.0, num_inference_steps=3, output_type="np")
    assert lines_of(caught) == {line_above()}


@pytest.mark.parametrize("name", ["dqar_fx.room.module", "torch", "diffusers.pipelines"])
def test_warn_passes_over_modules_between(name):
    with pytest.warns(UserWarning, match="by hand") as caught:
        exec("warn('by hand')", {"__name__": name, "warn": warn})
    assert lines_of(caught) == {line_above()}


def test_once_warns_of_each_thing_once():
    once = Once()
    with pytest.warns(UserWarning, match="^a$"):
        once.warn("a")
    once.warn("a")
    with pytest.warns(UserWarning, match="step 1"):
        once.warn("step 1 is cold", key="cold")
    once.warn("step 2 is cold", key="cold")


def test_warn_names_the_line_that_calls_it():
    with pytest.warns(UserWarning, match="by hand") as caught:
        warn("by hand")
    assert lines_of(caught) == {line_above()}
