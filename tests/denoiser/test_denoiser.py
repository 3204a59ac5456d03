"""The denoiser's face: signature, outputs, moves, contexts, and errors for wrong use."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.program import programs
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import Attention, Optional, make_dit, make_pixart


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=2)


@pytest.fixture
def denoiser(case):
    return dqar_fx.transform(case.model, Schedule.from_actions("SRRR"))


def test_denoiser_has_the_face_of_the_original(case, denoiser):
    assert inspect.signature(denoiser.forward) == inspect.signature(case.model.forward)
    assert denoiser.config is case.model.config or denoiser.config == case.model.config
    assert denoiser.dtype == case.model.dtype
    assert denoiser.device == case.model.device
    assert denoiser.out_channels == case.model.out_channels


def test_denoiser_answers_return_dict_as_the_original(case, denoiser):
    inputs = case.inputs(0)
    with torch.no_grad():
        expected = case.model(**inputs)
    as_object = denoiser(**inputs)
    as_tuple = denoiser(**case.inputs(1), return_dict=False)
    assert type(as_object) is type(expected)
    assert torch.equal(as_object.sample, expected.sample)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 1
    assert len(denoiser._programs) == 1


def test_denoiser_takes_positional_arguments(case, denoiser):
    inputs = case.inputs(0)
    expected = denoiser(**inputs).sample
    denoiser.reset()
    result = denoiser(inputs["hidden_states"], inputs["timestep"], inputs["class_labels"])
    assert torch.equal(result.sample, expected)


def test_denoiser_returns_nothing_that_a_later_step_overwrites(case, denoiser):
    first = denoiser(**case.inputs(0)).sample
    kept = first.clone()
    for step in (1, 2):
        denoiser(**case.inputs(step))
    assert torch.equal(first, kept)


def test_denoiser_of_a_site_that_ends_the_model_hands_out_no_slot():
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(16)

        def forward(self, x, timestep):
            return self.attention(x * timestep.reshape(-1, 1, 1)).transpose(0, 1)

    model = Tail().eval()
    denoiser = dqar_fx.transform(model, Schedule.from_actions("SR"))
    x = torch.randn(2, 5, 16)
    denoiser(x, torch.full((2,), 5.0))
    result = denoiser(x.clone(), torch.full((2,), 4.0))
    (stream,) = denoiser.program.streams.values()
    addresses = {b.untyped_storage().data_ptr() for b in stream.slots.buffers.values()}
    assert result.untyped_storage().data_ptr() not in addresses


def test_denoiser_moves_without_the_original(case):
    denoiser = dqar_fx.transform(
        case.model, Schedule.compute_all(2), example_inputs=case.inputs(0)
    )
    denoiser.to(torch.bfloat16)
    assert denoiser.dtype == torch.bfloat16
    assert case.model.dtype == torch.float32
    inputs = case.inputs(0)
    inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
    expected = make_dit(layers=2).model.to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(denoiser(**inputs).sample, expected(**inputs).sample)


def test_denoiser_moved_to_where_it_is_keeps_its_graphs(case, denoiser):
    program = denoiser.prepare(**case.inputs(0))
    assert denoiser.to("cpu").program is program


def test_denoiser_follows_weights_loaded_into_the_model(case):
    model = make_dit(layers=2).model
    denoiser = dqar_fx.transform(model, Schedule.compute_all(4))
    before = denoiser(**case.inputs(0)).sample
    weights = {k: v * 1.5 for k, v in model.state_dict().items()}
    denoiser.load_state_dict(weights)  # and so into the model, whose memory it shares
    with torch.no_grad():
        expected = model(**case.inputs(0)).sample
    result = denoiser(**case.inputs(0)).sample
    assert torch.equal(result, expected)
    assert not torch.equal(result, before)


def test_denoiser_keeps_some_signatures_least_recently_used_out(monkeypatch):
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 8)
    denoiser = dqar_fx.transform(Optional(), Schedule.compute_all(1))

    def prepare(batch):
        return denoiser.prepare(torch.ones(batch, 4, 16), torch.ones(batch))

    first = prepare(1)
    others = [prepare(batch) for batch in range(2, 9)]
    assert prepare(1) is first
    prepare(9)
    assert prepare(1) is first
    assert prepare(3) is others[1]
    assert prepare(2) is not others[0]


def test_denoiser_evaluates_text_once_per_trajectory():
    case = make_pixart()
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(3))
    denoiser(**case.inputs(0))
    (stream,) = denoiser.program.streams.values()
    before = dict(stream.memo.outputs)
    denoiser(**case.inputs(1))
    changed = [k for k, outputs in stream.memo.outputs.items() if outputs is not before[k]]
    assert changed == [len(before) - 1]


def test_denoiser_sees_conditioning_that_is_written_in_place():
    case = make_pixart()
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(3))
    denoiser(**case.inputs(0))
    case.given["encoder_hidden_states"].mul_(-1)
    with torch.no_grad():
        expected = case.model(**case.inputs(1)).sample
    assert torch.equal(denoiser(**case.inputs(1)).sample, expected)


def test_denoiser_runs_in_inference_mode(case, denoiser):
    plain = [denoiser(**case.inputs(step)).sample for step in range(3)]
    denoiser.reset()
    with torch.inference_mode():
        inferred = [denoiser(**case.inputs(step)).sample.clone() for step in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(plain, inferred, strict=True))


def test_denoiser_named_streams_have_their_own_slots():
    case = make_dit(layers=2)
    oracles = {name: Oracle(case.model) for name in ("cond", "uncond")}
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SRSR"))
    for step in range(4):
        for shift, name in enumerate(oracles):
            inputs = case.inputs(step)
            inputs["class_labels"] = inputs["class_labels"] + shift
            with denoiser.cache_context(name, step_index=step):
                result = denoiser(**inputs).sample
            assert torch.equal(result, oracles[name](denoiser.table.actions[step], **inputs))
    assert len(denoiser.program.streams) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_denoiser_unnamed_streams_have_their_own_slots(mode):
    case = make_dit(layers=2)
    oracles = [Oracle(case.model), Oracle(case.model)]
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SRSR"))
    with mode():
        for step in range(4):
            inputs = case.inputs(step)
            for shift, oracle in enumerate(oracles):
                branch = {**inputs, "class_labels": case.given["class_labels"] + shift}
                result = denoiser(**branch).sample
                assert torch.equal(result, oracle(denoiser.table.actions[step], **branch))


def test_denoiser_run_that_begins_late_computes_and_its_log_says_why(case, denoiser):
    with torch.no_grad():
        expected = case.model(**case.inputs(2)).sample
    with denoiser.cache_context("cond", step_index=2), warnings.catch_warnings():
        warnings.simplefilter("error")  # an image-to-image run is as it should be
        assert torch.equal(denoiser(**case.inputs(2)).sample, expected)
    (run,) = denoiser.runs
    assert [(call.num_cold, call.reason) for call in run.calls] == [
        (2, "its run began at step 2")
    ]
    oracle = Oracle(case.model)
    oracle([1, 1], **case.inputs(2))
    with denoiser.cache_context("cond", step_index=3), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(denoiser(**case.inputs(3)).sample, oracle([2, 2], **case.inputs(3)))


def test_denoiser_trajectory_longer_than_the_table_names_both_lengths(case, denoiser):
    for step in range(4):
        denoiser(**case.inputs(step))
    with pytest.raises(dqar_fx.StepError, match=r"step 4 of at least 5 steps.* has 4"):
        denoiser(**case.inputs(4))
    denoiser(**case.inputs(0))  # starts anew


def test_denoiser_without_any_clock_says_how_to_give_one():
    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(16)

        def forward(self, x):
            return self.attention(x)

    denoiser = dqar_fx.transform(Timeless().eval(), Schedule.from_actions("SR"))
    with pytest.raises(dqar_fx.StepError, match="attach_scheduler"):
        denoiser(torch.randn(1, 3, 16))
    with denoiser.cache_context("only", step_index=0):
        denoiser(torch.randn(1, 3, 16))


def test_denoiser_refuses_a_gradient(case, denoiser):
    inputs = case.inputs(0)
    inputs["hidden_states"].requires_grad_()
    with pytest.raises(dqar_fx.DqarError, match="inference only"):
        denoiser(**inputs)


def test_denoiser_inspected_before_capture_says_what_to_do(denoiser):
    with pytest.raises(dqar_fx.DqarError, match="prepare"):
        denoiser.explain()


@pytest.fixture
def optional():
    model = Optional().eval()
    return model, dqar_fx.transform(model, Schedule.compute_all(9))


def check_calls(model, denoiser, *calls):
    x = torch.randn(2, 5, 16)
    for step, given in enumerate(calls):
        timestep = torch.full((2,), 9.0 - step)
        with torch.no_grad():
            expected = model(x, timestep, **given)
        assert torch.equal(denoiser(x, timestep, **given), expected)


def test_denoiser_tells_optional_inputs_apart(optional):
    e = torch.randn(2, 5, 16)
    check_calls(*optional, {"a": e}, {"b": e}, {"a": e, "b": e})


def test_denoiser_tells_dict_orders_apart(optional):
    one, two = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    orders = {"one": one, "two": two}, {"two": two, "one": one}
    check_calls(*optional, *({"more": order} for order in orders))


def test_denoiser_one_tensor_given_twice_stays_two_inputs(optional):
    e, f = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    check_calls(*optional, {"a": e, "b": e}, {"a": e, "b": f}, {"a": f, "b": e})


def test_denoiser_other_labels_at_the_next_timestep_read_nothing_that_was_kept(case, denoiser):
    denoiser(**case.inputs(0))  # broken off
    inputs = {**case.inputs(1, seed=5), "class_labels": case.given["class_labels"] + 4}
    with torch.no_grad():
        expected = case.model(**inputs).sample
    with pytest.warns(UserWarning, match="cold"):
        assert torch.equal(denoiser(**inputs).sample, expected)


def test_denoiser_guidance_branch_that_joins_later_has_slots_of_its_own(case):
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SRRR"))
    denoiser(**case.inputs(0))
    inputs = {**case.inputs(1), "class_labels": case.given["class_labels"] + 1}
    with torch.no_grad():
        expected = case.model(**inputs).sample
    with pytest.warns(UserWarning, match="cold"):
        assert torch.equal(denoiser(**inputs).sample, expected)


class Telling(nn.Module):
    """Returns conditioning beside its result."""

    def __init__(self):
        super().__init__()
        self.attention, self.embed = Attention(16), nn.Linear(16, 16)

    def forward(self, x, timestep, text):
        text = self.embed(text)
        return self.attention(x) + text * timestep.reshape(-1, 1, 1), text


def test_denoiser_conditioning_that_is_returned_may_be_written_to():
    model = Telling().eval()
    denoiser = dqar_fx.transform(model, Schedule.compute_all(3))
    x, text = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    for step in range(3):
        timestep = torch.full((2,), 9.0 - step)
        with torch.no_grad():
            expected = model(x, timestep, text)
        result = denoiser(x, timestep, text)
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
        result[1].mul_(100)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_denoiser_copied_after_a_call_is_on_its_own(case, denoiser, duplicate):
    expected = denoiser(**case.inputs(0)).sample
    other = duplicate(denoiser)
    assert torch.equal(other(**case.inputs(0)).sample, expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.reset()
    assert not torch.equal(other(**case.inputs(0)).sample, expected)
    denoiser.reset()
    assert torch.equal(denoiser(**case.inputs(0)).sample, expected)


def test_denoiser_moved_leaves_its_twin_where_it_was(case, denoiser):
    expected = denoiser(**case.inputs(0)).sample
    twin = denoiser.with_schedule(Schedule.compute_all(4))
    denoiser.to(torch.bfloat16)
    assert torch.equal(twin(**case.inputs(0)).sample, expected)


def test_denoiser_takes_offloading_hooks(case, denoiser):
    expected = denoiser(**case.inputs(0)).sample
    add_hook_to_module(denoiser, ModelHook())
    denoiser.reset()
    assert torch.equal(denoiser(**case.inputs(0)).sample, expected)


def test_denoiser_shows_submodules_and_empty_attributes(case, denoiser):
    assert len(denoiser.transformer_blocks) == 2
    case.model.encoder_hid_proj = None
    assert dqar_fx.transform(case.model, Schedule.compute_all(1)).encoder_hid_proj is None


def test_denoiser_rising_timesteps_reuse_by_the_table(case, denoiser):
    oracle = Oracle(case.model)
    for step in range(4):
        inputs = {**case.inputs(step), "timestep": torch.full((2,), float(step))}
        found = denoiser(**inputs).sample
        assert torch.equal(found, oracle(denoiser.table.actions[step], **inputs))
    (run,) = denoiser.runs
    assert run.num_reused == run.num_promised > 0


def test_denoiser_restarts_at_each_call_are_not_silently_useless(case, denoiser):
    """A timestep that stays what it is with latents that do not: nothing tells the time."""
    calls = [{**case.inputs(step), "timestep": torch.full((2,), 7.0)} for step in range(5)]
    with pytest.warns(UserWarning, match="nothing is reused") as said:
        [denoiser(**call) for call in calls]
    assert len(said) == 1


def test_denoiser_refuses_what_tells_no_step(denoiser):
    with pytest.raises(dqar_fx.StepError, match="has no step_index"):
        denoiser.attach_scheduler(object())
    for wrong in ({"step_index": -1}, {"step_index": 1.5}, {"num_inference_steps": "10"}):
        with (
            pytest.raises(dqar_fx.StepError, match="expected a whole number, at least"),
            denoiser.cache_context("cond", **wrong),
        ):
            pass


def test_denoiser_row_graph_outside_of_the_table_is_refused(case, denoiser):
    denoiser.prepare(**case.inputs(0))
    with pytest.raises(dqar_fx.StepError, match="the branch table has 4"):
        denoiser.row_graph(4)


def test_denoiser_explains_passes_on_regions_too(case, denoiser):
    denoiser(**case.inputs(0))
    names = {report.name for report in denoiser.explain().reports}
    assert names == {
        "merge_equal_parameters",
        "normalise",
        "hoist_conditioning",
        "insert_guards",
        "outline_regions",
        "specialise",
    }
