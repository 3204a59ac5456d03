"""Copies of pipelines with a denoiser, and requests to them that are aborted."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.models import seeded
from tests.helpers.sd3_pipeline import make_tiny_sd3, put_in_pipeline

ACTIONS = "SRRSRR"
STEPS = len(ACTIONS)
SCHEDULE = Schedule.from_actions(ACTIONS)


def make_pipeline():
    return put_in_pipeline(make_tiny_sd3(8))


def generate(pipe, seed=1, **more):
    text, pooled = seeded(1, 5, 16), seeded(1, 24)
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=-text,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=-pooled,
        latents=seeded(1, 4, 8, 8) * seed,
        num_inference_steps=STEPS,
        height=64,
        width=64,
        output_type="latent",
        **more,
    ).images


def is_by_the_table(denoiser):
    run = denoiser.runs[-1]
    steps = [call.step for call in run.calls]
    return steps == list(range(STEPS)) and run.num_reused == run.num_promised > 0


@pytest.fixture(scope="module")
def wanted():
    pipe = dqar_fx.enable(make_pipeline(), SCHEDULE)
    return {seed: generate(pipe, seed) for seed in (1, 2)}


def attached(pipe):
    pipe.transformer = dqar_fx.transform(pipe.transformer, SCHEDULE)
    pipe.transformer.attach_scheduler(pipe.scheduler)
    return pipe


def bare(pipe):
    pipe.transformer = dqar_fx.transform(pipe.transformer, SCHEDULE)
    return pipe


def enabled(pipe):
    return dqar_fx.enable(pipe, SCHEDULE)


WAYS = [bare, attached, enabled]


@pytest.mark.parametrize("way", WAYS)
def test_deep_copy_of_a_pipeline_goes_on_as_the_original_does(way, wanted):
    pipe = way(make_pipeline())
    generate(pipe, 2)
    other = copy.deepcopy(pipe)
    other.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(generate(other), wanted[1])
            assert is_by_the_table(other.transformer)
            assert torch.equal(generate(pipe), wanted[1])
            assert is_by_the_table(pipe.transformer)
    assert other.transformer.runs[-1].clock == "scheduler"
    assert other.scheduler is not pipe.scheduler


def test_deep_copy_of_a_denoiser_alone_keeps_the_scheduler_that_is_attached(wanted):
    pipe = attached(make_pipeline())
    pipe.transformer = copy.deepcopy(pipe.transformer)
    assert torch.equal(generate(pipe), wanted[1])
    assert is_by_the_table(pipe.transformer)


class Abort(Exception):
    pass


def raises(pipe, step, timestep, given):
    if step == 2:
        raise Abort
    return given


def interrupts(pipe, step, timestep, given):
    if step == 2:
        pipe._interrupt = True
    return given


@pytest.mark.parametrize("how", [raises, interrupts])
@pytest.mark.parametrize("way", WAYS)
def test_aborted_request_leaves_nothing_to_the_next(way, how, wanted):
    pipe = way(make_pipeline())
    for seed in (1, 2):
        try:
            generate(pipe, 1, callback_on_step_end=how)
        except Abort:
            assert how is raises
        assert pipe.transformer.runs[-1].last == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(generate(pipe, seed), wanted[seed])
        assert is_by_the_table(pipe.transformer)


@pytest.mark.filterwarnings("ignore:step 1.*start cold")
@pytest.mark.parametrize("way", WAYS)
def test_calls_after_each_step_are_streams_beside_those_of_the_pipeline(way, wanted):
    """A preview calls the denoiser once more, also when the last step is over."""
    pipe, model, found = way(make_pipeline()), make_pipeline().transformer, []
    text, pooled = seeded(1, 5, 16) + 1, seeded(1, 24) + 1

    def preview(_pipe, step, timestep, given):
        if step in (0, STEPS - 1):
            latents, t = given["latents"], timestep.expand(1)
            inputs = (latents, text, pooled, t)
            found.append((pipe.transformer(*inputs).sample, model(*inputs).sample))
        return given

    assert torch.equal(generate(pipe, 1, callback_on_step_end=preview), wanted[1])
    assert all(torch.equal(*each) for each in found)
    run = pipe.transformer.runs[-1]
    assert [call.step for call in run.calls] == [0, 1, 1, 2, 3, 4, 5, 5]
    assert torch.equal(generate(pipe, 1), wanted[1])
    assert is_by_the_table(pipe.transformer)


def test_end_of_a_request_leaves_a_session_in_its_midst(wanted):
    """A stock pipeline resets what is stateful at its end."""
    pipe = enabled(make_pipeline())
    other = put_in_pipeline(pipe.transformer)
    session = pipe.transformer.session()

    def serve_another(_pipe, step, _timestep, given):
        if step == 1:
            with session.turn():
                assert torch.equal(generate(other, 2), wanted[2])
        return given

    assert torch.equal(generate(pipe, 1, callback_on_step_end=serve_another), wanted[1])
    assert is_by_the_table(pipe.transformer)
    assert [call.step for call in session.runs[-1].calls] == list(range(STEPS))
    session.close()
