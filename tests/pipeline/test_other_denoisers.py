"""Pipelines whose denoiser is not, or not any more, the one that `enable` made."""

from __future__ import annotations

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import dqar_fx
from dqar_fx import DqarError, Schedule

STEPS = 6
THIRD, SECOND = Schedule.interval(every=3), Schedule.interval(every=2)


@pytest.fixture
def pipe():
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=4,
        out_channels=4,
    )
    made = DiTPipeline(model, AutoencoderKL(), DDIMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def reused(pipe):
    """Cells that the latest run of a pipeline's only denoiser reused."""
    pipe([1], num_inference_steps=STEPS, output_type="np")
    (run,) = dqar_fx.summary(pipe).runs
    assert run.length == STEPS
    return run.reused


def test_denoiser_of_another_schedule_is_summarised_and_disabled(pipe):
    model = pipe.transformer
    dqar_fx.enable(pipe, THIRD)
    assert reused(pipe) == 2 * 4
    pipe.transformer = pipe.transformer.with_schedule(SECOND)
    assert reused(pipe) == 2 * 3
    dqar_fx.disable(pipe)
    assert pipe.transformer is model


def test_pipeline_with_a_denoiser_put_in_by_hand_is_summarised(pipe):
    pipe.transformer = dqar_fx.transform(pipe.transformer, THIRD)
    assert reused(pipe) == 2 * 4


def test_pipeline_of_the_same_components_is_not_enabled_again(pipe):
    dqar_fx.enable(pipe, THIRD)
    other = DiTPipeline(pipe.transformer, pipe.vae, DDIMScheduler())
    assert reused(other) == 2 * 4
    with pytest.raises(DqarError, match=r"reuses here, too.*with_schedule\(schedule\)"):
        dqar_fx.enable(other, SECOND)


def test_component_that_was_replaced_by_something_else_stays(pipe):
    dqar_fx.enable(pipe, THIRD)
    pipe.transformer = other = DiTTransformer2DModel(num_layers=1, sample_size=4)
    dqar_fx.disable(pipe)
    assert pipe.transformer is other


def test_pipeline_without_a_transformed_denoiser_has_no_summary(pipe):
    with pytest.raises(DqarError, match="no transformed denoiser"):
        dqar_fx.summary(pipe)
    with pytest.raises(DqarError, match="not enabled"):
        dqar_fx.disable(pipe)
