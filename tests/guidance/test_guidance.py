"""Guidance: every stream against hooks on the untouched model; counts of calls and graphs."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dqar_fx
from benchmarks.reference import PIPELINE
from dqar_fx import Guidance, Schedule
from dqar_fx.program.program import Program
from tests.helpers.guidance_oracle import (
    ORDERS,
    Guided,
    NoReading,
    addresses_of,
    call_both,
    call_named,
    guided,
    half_of,
    make_case,
    masked,
    streams_of,
)
from tests.helpers.models import make_flux, make_pixart, make_sd3
from tests.helpers.slow_cases import slow_but

STEPS, LAYERS = 6, 2
KEPT = ("output", "difference")
FIRST = ORDERS[0]


@pytest.fixture(scope="module")
def case():
    return make_case(LAYERS)


@pytest.fixture(scope="module")
def plain(case):
    """Captured once for halves; other schedules and guidance share its graphs."""
    guidance = Guidance(batched=FIRST)
    return dqar_fx.transform(
        case.model,
        Schedule.compute_all(STEPS),
        guidance=guidance,
        example_inputs=case.inputs(0),
    )


@pytest.fixture(scope="module")
def alone(case):
    """Captured once for streams with calls of their own."""
    return dqar_fx.transform(
        case.model,
        Schedule.compute_all(STEPS),
        guidance=Guidance(),
        example_inputs=case.inputs(0),
    )


@pytest.fixture
def runs(monkeypatch):
    """Programs in the order in which they ran."""
    done, run = [], Program.run

    def noted(self, leaves, position):
        done.append(self)
        return run(self, leaves, position)

    monkeypatch.setattr(Program, "run", noted)
    return done


def computed(case, inputs):
    """What the model gives for both halves."""
    with torch.no_grad():
        return torch.cat([case.model(**half_of(inputs, f)).sample for f in (True, False)])


def first_computes(row):
    """Masks whose first step reads nothing."""
    return st.lists(row, min_size=STEPS - 1, max_size=STEPS - 1).map(
        lambda rows: np.array([np.zeros_like(rows[0]), *rows], bool)
    )


masks_of_sites = first_computes(st.lists(st.booleans(), min_size=LAYERS, max_size=LAYERS))
masks_of_output = first_computes(st.booleans())


# ---- halves of one batch -------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    cond=masks_of_sites,
    uncond=masks_of_sites,
    output=masks_of_output,
    keep=st.sampled_from(KEPT),
    order=st.sampled_from(ORDERS),
)
def test_batched_halves_equal_the_oracle(case, plain, cond, uncond, output, keep, order):
    guidance = Guidance(masked(uncond), masked(output), keep=keep, batched=order)
    denoiser = plain.with_schedule(masked(cond), guidance=guidance)
    assert denoiser.program.captured is plain.program.captured
    for seed in (0, 1):
        oracle = Guided(case.model, cond, uncond, output, keep=keep)
        for step in range(STEPS):
            inputs = case.inputs(step, seed)
            expected = oracle.batch(order, step, inputs)
            assert torch.equal(denoiser(**inputs).sample, expected)


@pytest.mark.parametrize("make", slow_but(make_pixart, of=[make_pixart, make_sd3, make_flux]))
@pytest.mark.parametrize("keep", slow_but("difference", of=KEPT))
def test_batched_unconditional_first_in_text_models(make, keep):
    case = make(batch=4)
    case.has_halves = True
    actions, order = ("CRCR", "CCRR", "CRCR"), "unconditional_first"
    denoiser = guided(case, *actions, keep=keep, batched=order)
    oracle = Guided(case.model, *actions, keep=keep)
    for step in range(4):
        inputs = case.inputs(step)
        expected = oracle.batch(order, step, inputs)
        assert torch.equal(denoiser(**inputs).sample, expected)


@pytest.mark.parametrize("keep", slow_but("difference", of=KEPT))
def test_batched_forecast_continues_the_line(case, plain, keep):
    schedule = Schedule.from_actions("CCRRCR").forecast(1)
    guidance = Guidance(output=schedule, keep=keep, batched=FIRST)
    denoiser = plain.with_schedule(Schedule.compute_all(STEPS), guidance=guidance)
    assert denoiser.guidance_table.history == 2
    oracle = Guided(case.model, "C" * STEPS, "C" * STEPS, "CCRRCR", keep=keep, line=True)
    for step in range(STEPS):
        expected = oracle.batch(FIRST, step, case.inputs(step))
        result = denoiser(**case.inputs(step)).sample
        error = (result - expected).abs().max() / expected.abs().max()
        assert error < 1e-5


def test_batched_forecast_takes_nothing_from_an_older_trajectory(case, plain):
    """The third place of the history holds what the run before left there."""
    orders = [[0], [0], [1], [0], [0], [2]]
    schedule = Schedule.from_actions("CCFCCF", orders=orders)
    guidance = Guidance(output=schedule, batched=FIRST)
    denoiser = plain.with_schedule(Schedule.compute_all(STEPS), guidance=guidance)
    for factor in (torch.nan, 1.0):
        for step in range(STEPS):
            inputs = case.inputs(step)
            inputs["hidden_states"] = inputs["hidden_states"] * factor
            result = denoiser(**inputs).sample
            assert result.isfinite().all() == (factor == 1.0)


def test_batched_skipped_steps_do_not_call_the_model(case, plain, runs):
    guidance = Guidance(output=Schedule.from_actions("CRRCRR"), batched=FIRST)
    denoiser = plain.with_schedule(Schedule.compute_all(STEPS), guidance=guidance)
    for step in range(STEPS):
        denoiser(**case.inputs(step))
    assert runs.count(denoiser.program) == STEPS
    assert runs.count(denoiser.unconditional) == 2
    assert len(runs) == STEPS + 2


def test_batched_without_schedules_is_the_model_on_halves(case, plain):
    for step in range(2):
        inputs = case.inputs(step)
        assert torch.equal(plain(**inputs).sample, computed(case, inputs))


@pytest.mark.parametrize("labels", [[3, 7, 2, 9], [1, 7, 9, 9]])
@pytest.mark.parametrize(
    "mode", slow_but(torch.no_grad, of=[torch.no_grad, torch.inference_mode])
)
def test_batched_other_labels_of_either_half_read_nothing_that_was_kept(case, mode, labels):
    """A run that was broken off, then another at the next timestep."""
    denoiser = guided(case, "CRRR", None, "CRRR", keep="difference", batched=FIRST)
    with mode():
        first = [denoiser(**case.inputs(step)).sample.clone() for step in range(4)]
        denoiser(**case.inputs(0))
        inputs = {**case.inputs(1, seed=5), "class_labels": torch.tensor(labels)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the cold start
            assert torch.equal(denoiser(**inputs).sample, computed(case, inputs))
        again = [denoiser(**case.inputs(step)).sample.clone() for step in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_batched_other_batch_reads_nothing_that_was_kept(case):
    denoiser = guided(case, "CRRR", None, "CRRR", batched=FIRST)
    for step in range(2):
        denoiser(**case.inputs(step))
    inputs = {name: value[[1, 3]] for name, value in case.inputs(2).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cold start
        assert torch.equal(denoiser(**inputs).sample, computed(case, inputs))


@pytest.mark.parametrize("keep", slow_but("difference", of=KEPT))
def test_batched_run_that_begins_late_computes_and_stores(case, keep):
    denoiser = guided(case, "CCCC", None, "CRRR", keep=keep, batched=FIRST)
    oracle = Guided(case.model, "CCCC", "CCCC", "CCCR", keep=keep)
    call_named(denoiser, 2, ("both", case.inputs(2)))
    *_, whole = denoiser.runs[-1].calls
    assert (whole.is_whole, whole.num_cold) == (True, 1)
    assert whole.reason == "its run began at step 2"
    denoiser.reset()
    for step in (2, 3):
        (result,) = call_named(denoiser, step, ("both", case.inputs(step)))
        assert torch.equal(result, oracle.batch(FIRST, step, case.inputs(step)))


def test_batched_step_that_fails_while_it_stores_keeps_nothing(case, monkeypatch):
    denoiser = guided(case, "CCCC", None, "CRCR", batched=FIRST)
    for step in range(2):
        denoiser(**case.inputs(step))
    (kept,) = denoiser._beside(denoiser.program).kept.values()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept.slots, "note", fail)
        with pytest.raises(KeyboardInterrupt):
            denoiser(**case.inputs(2))
    inputs = case.inputs(3)
    with pytest.warns(UserWarning, match="cold"):
        assert torch.equal(denoiser(**inputs).sample, computed(case, inputs))


def test_batched_addresses_stay_and_are_never_handed_out(case):
    denoiser = guided(case, "CRCR", None, "CRRR", batched=FIRST)
    seen = []
    for seed in (0, 1, 2):
        for step in range(4):
            result = denoiser(**case.inputs(step, seed)).sample
            assert result.data_ptr() not in addresses_of(denoiser)
            result.fill_(torch.nan)
        seen.append(addresses_of(denoiser))
    assert seen[0] == seen[1] == seen[2]
    assert denoiser(**case.inputs(0)).sample.isfinite().all()


def test_batched_restarts_at_each_call_are_told_of_though_no_site_reuses(case):
    denoiser = guided(case, "CCCC", None, "CRRR", batched=FIRST)

    calls = [{**case.inputs(step), "timestep": torch.full((4,), 7.0)} for step in range(5)]
    with pytest.warns(UserWarning, match="nothing is reused"):
        [denoiser(**call) for call in calls]


@pytest.mark.parametrize("keep", slow_but("difference", of=KEPT))
def test_steps_read_no_tensor(case, plain, alone, keep):
    """On an accelerator, but for the first step, whose batch may have no halves."""
    schedule = Schedule.from_actions("CCRRCR").forecast(1)
    own = Schedule.from_actions("CRCRCR")
    halves = plain.with_schedule(own, guidance=Guidance(own, schedule, keep, FIRST))
    streams = alone.with_schedule(own, guidance=Guidance(own, schedule, keep))
    for step in range(STEPS):
        inputs = case.inputs(step)
        with NoReading() if step else nullcontext():
            call_named(halves, step, ("both", inputs))
            call_named(streams, step, ("cond", inputs), ("uncond", inputs))


# ---- streams with calls of their own -------------------------------------------------------


def call_nameless(denoiser, step, cond, uncond):
    del step
    return [denoiser(**inputs).sample for inputs in (cond, uncond)]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    cond=masks_of_sites,
    uncond=masks_of_sites,
    output=masks_of_output,
    keep=st.sampled_from(KEPT),
    is_named=st.booleans(),
)
def test_sequential_streams_equal_the_oracle(
    case, alone, cond, uncond, output, keep, is_named
):
    stream = "uncond" if is_named else 1
    guidance = Guidance(masked(uncond), masked(output), keep=keep, stream=stream)
    denoiser = alone.with_schedule(masked(cond), guidance=guidance)
    call = call_both if is_named else call_nameless
    for seed in (0, 1):
        oracle = Guided(case.model, cond, uncond, output, keep=keep)
        for step in range(STEPS):
            inputs = streams_of(case, step, seed)
            mine, its = call(denoiser, step, *inputs)
            assert torch.equal(mine, oracle.conditional(step, inputs[0]))
            assert torch.equal(its, oracle.unconditional(step, inputs[1]))


def test_sequential_unconditional_first_keeps_outputs(case, runs):
    denoiser = guided(case, "CCCC", None, "CRRC")
    for seed in (0, 1):
        oracle = Guided(case.model, "CCCC", "CCCC", "CRRC")
        for step in range(4):
            cond, uncond = streams_of(case, step, seed)
            its, mine = call_named(denoiser, step, ("uncond", uncond), ("cond", cond))
            assert torch.equal(mine, oracle.conditional(step, cond))
            assert torch.equal(its, oracle.unconditional(step, uncond))
    assert runs.count(denoiser.unconditional) == 4


def test_sequential_difference_without_a_conditional_call_computes_and_says_so_once(case):
    denoiser = guided(case, "CCCC", None, "CRRR", keep="difference")

    def call(step):
        cond, uncond = streams_of(case, step)
        its, _ = call_named(denoiser, step, ("uncond", uncond), ("cond", cond))
        with torch.no_grad():
            assert torch.equal(its, case.model(**uncond).sample)

    with pytest.warns(UserWarning, match="no conditional call of the same step"):
        call(0)
    call(1)
    call(2)


def test_sequential_outputs_are_the_callers_to_overwrite(case):
    denoiser = guided(case, "CCCC", None, "CRRR", keep="difference")
    oracle = Guided(case.model, "CCCC", "CCCC", "CRRR", keep="difference")
    for step in range(4):
        cond, uncond = streams_of(case, step)
        (mine,) = call_named(denoiser, step, ("cond", cond))
        assert torch.equal(mine, oracle.conditional(step, cond))
        mine.fill_(torch.nan)
        (its,) = call_named(denoiser, step, ("uncond", uncond))
        assert torch.equal(its, oracle.unconditional(step, uncond))
        its.fill_(torch.nan)


def test_sequential_other_conditional_labels_end_what_the_other_stream_kept(case):
    """A run that was broken off, and another at the next timestep, with equal null labels."""
    denoiser = guided(case, "CCCC", None, "CRRR", stream=1)
    call_nameless(denoiser, 0, *streams_of(case, 0))
    cond, uncond = streams_of(case, 1, seed=5)
    cond["class_labels"] = cond["class_labels"] + 1
    with torch.no_grad():
        expected = case.model(**uncond).sample
    with pytest.warns(UserWarning, match="cold"):
        _, its = call_nameless(denoiser, 1, cond, uncond)
    assert torch.equal(its, expected)


def test_sequential_texts_of_other_lengths_share_one_trajectory():
    case = make_pixart()
    actions = ("CRCC", "CRCR", "CCRR")
    denoiser = guided(case, *actions, keep="difference")
    oracle = Guided(case.model, *actions, keep="difference")
    short = {
        "encoder_hidden_states": case.given["encoder_hidden_states"][:, :3].contiguous(),
        "encoder_attention_mask": torch.ones(2, 3),
    }
    for step in range(4):
        cond = case.inputs(step)
        uncond = {**cond, **short}
        mine, its = call_both(denoiser, step, cond, uncond)
        assert torch.equal(mine, oracle.conditional(step, cond))
        assert torch.equal(its, oracle.unconditional(step, uncond))


@pytest.mark.parametrize("ends_by", ["next trajectory", "reset"])
def test_sequential_stream_that_never_comes_is_told_of_once(case, ends_by):
    denoiser = guided(case, "CRCR", None, "CRRR", stream="negative")

    def generate(seed):
        for step in range(4):
            call_both(denoiser, step, *streams_of(case, step, seed))

    generate(0)
    with pytest.warns(UserWarning, match=r"never came in .* 4 steps.*context\('negative'\)"):
        denoiser.reset() if ends_by == "reset" else generate(1)
    generate(2)
    denoiser.reset()


def test_sequential_stream_that_joins_late_computes_first(case):
    denoiser = guided(case, "CCCC", None, "CRRR")
    for step in range(2):
        call_named(denoiser, step, ("cond", case.inputs(step)))
    _, first = call_both(denoiser, 2, *streams_of(case, 2))
    assert denoiser.runs[-1].calls[-1].num_cold == 1
    assert denoiser.runs[-1].calls[-1].reason == "it came for the first time at step 2"
    with torch.no_grad():
        assert torch.equal(first, case.model(**streams_of(case, 2)[1]).sample)
    _, then = call_both(denoiser, 3, *streams_of(case, 3))
    assert torch.equal(then, first)


@pytest.mark.parametrize("keep", slow_but("difference", of=KEPT))
def test_sequential_addresses_stay_and_are_never_handed_out(case, keep):
    denoiser = guided(case, "CRCR", None, "CRRR", keep=keep)
    seen = []
    for seed in (0, 1):
        for step in range(4):
            for result in call_both(denoiser, step, *streams_of(case, step, seed)):
                assert result.data_ptr() not in addresses_of(denoiser)
        seen.append(addresses_of(denoiser))
    assert seen[0] == seen[1]


# ---- inside a stock pipeline ---------------------------------------------------------------


class Halved(nn.Module):
    """The original in the pipeline, called on halves by the oracle."""

    def __init__(self, model, oracle):
        super().__init__()
        self.model, self.oracle, self.step = model, oracle, 0

    config = property(lambda self: self.model.config)
    dtype = property(lambda self: self.model.dtype)
    device = property(lambda self: self.model.device)

    def forward(self, hidden_states, timestep, class_labels):
        inputs = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "class_labels": class_labels,
        }
        self.step += 1
        sample = self.oracle.batch(FIRST, self.step - 1, inputs)
        return type("Output", (), {"sample": sample})


@pytest.mark.parametrize("keep", slow_but("difference", of=KEPT))
def test_pipeline_with_guidance_gives_the_pictures_of_the_oracle(keep, runs):
    pipe = DiTPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    model, (cond, uncond, output) = pipe.transformer, ("CRCRRC", "CCRRCR", "CCRCRC")

    def generate(seed):
        return pipe(
            [1, 8],
            guidance_scale=1.5,
            num_inference_steps=6,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images

    written = map(Schedule.from_actions, (uncond, output))
    guidance = Guidance(*written, keep=keep, batched=FIRST)
    schedule = Schedule.from_actions(cond)
    pipe.transformer = dqar_fx.transform(model, schedule, guidance=guidance)
    pictures = [generate(seed) for seed in (0, 1)]
    assert len(runs) == 2 * (6 + 4)
    for seed, picture in enumerate(pictures):
        oracle = Guided(model, cond, uncond, output, keep=keep)
        pipe.transformer = Halved(model, oracle)
        assert np.array_equal(picture, generate(seed))
        assert [stream.calls for stream in oracle.streams] == [6, 4]
