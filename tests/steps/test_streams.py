"""Which stream a call is of: told by its name, and by what stays the same."""

from __future__ import annotations

import pytest
import torch

from dqar_fx.steps.streams import MAX_STREAMS, RunStreams
from tests.helpers.clock_calls import make_call


class Steps:
    """Calls of one run, step by step."""

    def __init__(self):
        self.streams, self.step = RunStreams(), 0

    def next(self):
        self.step += 1
        self.streams.next_step()

    def call(self, name=None, *, is_sure=True, signature="program", **conditioning):
        call = make_call(0, signature=signature, **conditioning)
        return self.streams.choose(name, call, self.step, is_sure=is_sure)[0]


def numbers(seed, *shape):
    return torch.randn(shape or (4,), generator=torch.Generator().manual_seed(seed))


TEXTS = {"cond": numbers(1), "uncond": numbers(2), "skip": numbers(3)}


@pytest.mark.parametrize("fresh", [False, True], ids=["same tensors", "equal tensors"])
def test_streams_are_told_by_their_prompt(fresh):
    steps, found = Steps(), []
    for order in (("cond", "uncond"), ("uncond", "cond"), ("cond", "uncond")):
        given = [TEXTS[name].clone() if fresh else TEXTS[name] for name in order]
        found.append([steps.call(encoder_hidden_states=text).number for text in given])
        steps.next()
    assert found == [[0, 1], [1, 0], [0, 1]]


def test_stream_that_comes_and_goes_has_a_number_of_its_own():
    steps, present = Steps(), [("cond", "uncond"), ("cond",), ("cond", "uncond", "skip")]
    present += [("cond", "skip"), ("cond", "uncond", "skip")]
    found = []
    for names in present:
        called = [steps.call(encoder_hidden_states=TEXTS[name]) for name in names]
        found.append([stream.number for stream in called])
        steps.next()
    assert found == [[0, 1], [0], [0, 1, 2], [0, 2], [0, 1, 2]]


def test_stream_does_not_take_the_place_of_one_that_waits():
    """The second call comes alone, with a prompt that nobody has had."""
    steps = Steps()
    for name in ("cond", "uncond"):
        steps.call(encoder_hidden_states=TEXTS[name])
    steps.next()
    assert steps.call(encoder_hidden_states=TEXTS["skip"]).number == 2
    assert steps.call(encoder_hidden_states=TEXTS["uncond"]).number == 1
    assert steps.call(encoder_hidden_states=TEXTS["cond"]).number == 0


@pytest.mark.parametrize("name", [None, "cond"], ids=["nameless", "named"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_prompt_written_in_place_is_another_prompt(name, mode):
    with mode():
        steps, text = Steps(), numbers(1)
        tokens = []
        for new in (None, None, numbers(2), None):
            if new is not None:
                text.copy_(new)
            tokens.append(steps.call(name, encoder_hidden_states=text).token)
            steps.next()
        assert tokens[0] is tokens[1]
        assert tokens[2] is not tokens[1]
        assert tokens[3] is tokens[2]


@pytest.mark.parametrize("name", [None, "cond"], ids=["nameless", "named"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.copy_(text.flip(0).clone()),
        lambda text: text.neg_(),
        lambda text: text[2:3].add_(1e-3),
    ],
    ids=["permuted", "negated", "one element"],
)
def test_prompt_that_is_hardly_changed_in_place_is_another_prompt(name, mode, write):
    with mode():
        steps, text = Steps(), numbers(1)
        first = steps.call(name, encoder_hidden_states=text).token
        steps.next()
        write(text)
        assert steps.call(name, encoder_hidden_states=text).token is not first


@pytest.mark.parametrize("is_sure", [True, False])
def test_prompt_that_is_another_one_at_the_second_step_starts_anew_and_says_so(is_sure):
    steps = Steps()
    first = steps.call(encoder_hidden_states=numbers(1), mask=TEXTS["cond"])
    steps.next()
    second = steps.call(encoder_hidden_states=numbers(2), mask=TEXTS["cond"], is_sure=is_sure)
    assert second is not first
    assert "encoder_hidden_states" in second.reason.text


def test_residuals_that_are_new_at_each_step_are_data():
    steps, tokens = Steps(), []
    for step in range(5):
        stream = steps.call(
            is_sure=False,
            encoder_hidden_states=TEXTS["cond"],
            controlnet_block_samples=numbers(100 + step),
        )
        tokens.append(stream.token)
        steps.next()
    assert len(set(map(id, tokens))) == 1


def test_residuals_of_two_streams_follow_their_own_prompt():
    steps, found = Steps(), []
    for step in range(5):
        residuals = numbers(100 + step)
        found.append(
            [
                steps.call(encoder_hidden_states=TEXTS[name], residuals=residuals).number
                for name in ("cond", "uncond")
            ]
        )
        steps.next()
    assert found == [[0, 1]] * 5


def test_second_timestep_is_data_also_where_values_alone_tell_the_time():
    steps, text = Steps(), TEXTS["cond"]
    tokens = set()
    for step in range(4):
        stream = steps.call(
            is_sure=False, encoder_hidden_states=text, timestep_r=torch.tensor(1.0 - step)
        )
        tokens.add(stream.token)
        steps.next()
    assert len(tokens) == 1


def test_prompt_that_travels_from_the_start_is_data_after_it_was_said_once():
    """At its second step nobody can know; from the third on it has changed at every step."""
    steps, tokens, reasons = Steps(), [], []
    for step in range(5):
        stream = steps.call(encoder_hidden_states=numbers(step), mask=TEXTS["cond"])
        tokens.append(stream.token)
        reasons.append(stream.reason)
        steps.next()
    assert len({id(token) for token in tokens}) == 2
    assert reasons[0] is None
    assert reasons[1].mend


def test_prompt_that_stays_after_it_changed_once_does_not_travel():
    """Each of them is another tensor, as where it is encoded anew at each step."""
    steps, tokens = Steps(), []
    for seed in (1, 2, 2, 2, 3):
        stream = steps.call(encoder_hidden_states=numbers(seed), mask=TEXTS["cond"])
        tokens.append(stream.token)
        steps.next()
    assert tokens[1] is tokens[2] is tokens[3]
    assert tokens[4] is not tokens[3]


def test_prompt_that_changes_does_not_take_the_place_of_another_that_did():
    """Two streams told by their prompts alone: the one's changes, then the other's."""
    steps, found = Steps(), []
    for seeds in ((1, 2), (1, 3), (4, 3)):
        found.append([steps.call(encoder_hidden_states=numbers(seed)).token for seed in seeds])
        steps.next()
    assert found[0][0] is found[1][0]
    assert found[2][0] not in found[1]
    assert found[2][1] is found[1][1]


def test_prompt_that_changed_once_stays_the_same_where_data_ends():
    steps = Steps()
    for seed in (1, 2):
        given = {"encoder_hidden_states": numbers(seed), "residual": numbers(seed + 5)}
        before = steps.call(**given).token
        steps.next()
    after = steps.call(signature="without", encoder_hidden_states=numbers(2))
    assert after.token is before


def test_input_that_changes_after_it_had_stayed_is_no_data():
    steps = Steps()
    tokens = []
    for seed in (1, 1, 1, 2, 2):
        tokens.append(
            steps.call(encoder_hidden_states=TEXTS["cond"], extra=numbers(seed)).token
        )
        steps.next()
    assert tokens[0] is tokens[1] is tokens[2]
    assert tokens[3] is not tokens[2]
    assert tokens[4] is tokens[3]


def test_call_of_another_program_is_another_stream_and_says_so():
    steps = Steps()
    first = steps.call(encoder_hidden_states=TEXTS["cond"])
    steps.next()
    second = steps.call(signature="half", encoder_hidden_states=TEXTS["cond"][:2])
    assert second.token is not first.token
    assert "Guidance(batched=...)" in second.reason.mend
    steps.next()
    third = steps.call(encoder_hidden_states=TEXTS["cond"])  # the batch grows again
    assert third is first


def test_streams_of_one_name_and_others_do_not_mix():
    steps = Steps()
    found = [
        steps.call(name, encoder_hidden_states=TEXTS["cond"]) for name in ("a", "b", None)
    ]
    assert len(set(map(id, found))) == 3
    assert [(stream.name, stream.number) for stream in found] == [
        ("a", 0),
        ("b", 0),
        (None, 0),
    ]


def test_the_stream_called_longest_ago_goes_first_where_there_are_too_many():
    steps = Steps()
    first, *others = (
        steps.call(encoder_hidden_states=numbers(seed)) for seed in range(MAX_STREAMS)
    )
    steps.next()
    for seed in range(1, MAX_STREAMS):
        steps.call(encoder_hidden_states=numbers(seed))
    added = steps.call(encoder_hidden_states=numbers(MAX_STREAMS))
    assert added.number == first.number
    steps.next()
    found = [steps.call(encoder_hidden_states=numbers(s)) for s in range(1, MAX_STREAMS + 1)]
    assert found == [*others, added]


def with_residuals(steps, step, **given):
    return steps.call(
        signature="with", encoder_hidden_states=TEXTS["cond"], residuals=numbers(step), **given
    )


def test_data_that_comes_and_goes_leaves_the_stream_as_it_is():
    steps, found = Steps(), []
    for step, has_residuals in enumerate((True, True, False, False, True, False)):
        if has_residuals:
            found.append(with_residuals(steps, step))
        else:
            found.append(steps.call(encoder_hidden_states=TEXTS["cond"]))
        steps.next()
    assert len({id(stream.token) for stream in found}) == 1
    assert {stream.number for stream in found} == {0}
    assert not any(stream.reason for stream in found)


def test_data_that_goes_takes_no_other_stream():
    steps = Steps()
    first = with_residuals(steps, 0)
    steps.next()
    assert steps.call(encoder_hidden_states=TEXTS["uncond"]).token is not first.token
    assert with_residuals(steps, 1).token is first.token


def test_second_call_of_a_step_without_data_is_another_stream():
    steps = Steps()
    first = with_residuals(steps, 0)
    assert steps.call(encoder_hidden_states=TEXTS["cond"]).token is not first.token


def test_prompt_that_comes_is_no_data():
    steps = Steps()
    first = steps.call(encoder_hidden_states=TEXTS["cond"])
    steps.next()
    second = steps.call(
        signature="more", encoder_hidden_states=TEXTS["cond"], pooled_projections=numbers(9)
    )
    assert second.token is not first.token
