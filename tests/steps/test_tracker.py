"""Which step of which run a call is: every clock, and what breaks a run off."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import StepError
from dqar_fx.pipeline.watch import watch
from dqar_fx.steps.tracker import StepTracker
from tests.helpers.clock_calls import locate, make_call, walk

TEXT, OTHER = torch.tensor([1.0]), torch.tensor([2.0])
FALLING, RISING = (9.0, 7.0, 4.0, 2.0), (0.0, 0.3, 0.6, 0.9)

# diffusers gives a tensor to numpy where that asks for a keyword that tensors do not have
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# ---- by value ------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [FALLING, RISING], ids=["fall", "rise"])
def test_steps_follow_values_in_either_direction(values):
    tracker = StepTracker()
    for _ in range(3):
        assert walk(tracker, values) == [0, 1, 2, 3]


@pytest.mark.parametrize("values", [FALLING, RISING], ids=["fall", "rise"])
def test_runs_by_value_are_told_apart(values):
    tracker = StepTracker()
    runs = [[locate(tracker, t).run for t in values] for _ in range(2)]
    assert [len(set(map(id, run))) for run in runs] == [1, 1]
    assert runs[0][0] is not runs[1][0]


@pytest.mark.parametrize(
    "values", [[9, 7, 7, 4, 4, 2], [0.0, 0.3, 0.3, 0.6], [9, 7, 2, 2]], ids=str
)
def test_equal_neighbouring_values_with_new_latents_are_steps(values):
    tracker = StepTracker()
    for _ in range(2):
        assert walk(tracker, values, text=TEXT) == list(range(len(values)))


@pytest.mark.parametrize("other", [TEXT, OTHER], ids=["same prompt", "another prompt"])
def test_direction_is_learnt_anew(other):
    """Runs that rise, then runs that fall, each below the one before."""
    tracker = StepTracker()
    assert walk(tracker, RISING, text=TEXT) == [0, 1, 2, 3]
    for first in (0.8, -1.0):
        values = [first - number for number in range(4)]
        assert walk(tracker, values, text=other) == [0, 1, 2, 3]


def test_direction_is_learnt_anew_though_data_changes():
    """The second call may be another request; after it, nothing is doubtful any more."""
    tracker = StepTracker()
    walk(tracker, RISING, text=TEXT)
    found = [locate(tracker, 0.8 - n, residual=torch.randn(2)).step for n in range(5)]
    assert found == [0, 0, 1, 2, 3]


def test_first_value_again_with_a_new_latent_begins_a_run():
    tracker = StepTracker()
    first, second = locate(tracker, 9), locate(tracker, 9)
    assert (first.step, second.step) == (0, 0)
    assert second.stream == (None, 0)
    assert second.trajectory is not first.trajectory


def test_values_after_the_last_step_of_a_run_begin_another():
    """Of a length that the clock is told; the values go on in the same direction."""
    tracker = StepTracker()
    found = [locate(tracker, t, name="x", num_steps=3, text=TEXT) for t in (9, 8, 7, 6, 5, 4)]
    assert [each.step for each in found] == [0, 1, 2, 0, 1, 2]


def test_turn_of_the_values_begins_a_run():
    tracker = StepTracker()
    assert walk(tracker, [9, 7, 4, 8, 6]) == [0, 1, 2, 0, 1]


def test_broken_off_run_then_one_that_begins_elsewhere():
    """The direction of the run before is what is expected of the next one."""
    tracker = StepTracker()
    assert walk(tracker, [9, 7, 4]) == [0, 1, 2]
    assert walk(tracker, [6, 5]) == [0, 1]


def test_same_value_and_latent_is_the_next_stream():
    tracker = StepTracker()
    for step, t in enumerate((9, 8, 7)):
        x = torch.randn(3)
        found = [locate(tracker, t, x, text=text) for text in (TEXT, OTHER)]
        assert [(each.step, each.stream) for each in found] == [
            (step, (None, 0)),
            (step, (None, 1)),
        ]


def test_streams_with_latents_of_their_own_share_a_step():
    """Equal values in other memory, as ``latents.clone()`` for each stream gives them."""
    tracker = StepTracker()
    for step, t in enumerate((9, 8, 7)):
        x = torch.randn(3)
        found = [locate(tracker, t, x.clone(), text=text) for text in (TEXT, OTHER)]
        assert [each.step for each in found] == [step, step]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_latent_written_in_place_is_another_latent(mode):
    with mode():
        tracker, x = StepTracker(), torch.zeros(4)
        first = locate(tracker, 9, x, text=TEXT)
        x += 1
        assert locate(tracker, 9, x, text=TEXT).trajectory is not first.trajectory


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_latent_written_in_place_at_an_equal_value_is_the_next_step(mode):
    with mode():
        tracker, x, found = StepTracker(), torch.arange(4.0), []
        for t in (9, 7, 7, 4):
            found.append(locate(tracker, t, x, text=TEXT).step)
            x.copy_(x.flip(0).clone())
    assert found == [0, 1, 2, 3]


def test_list_of_latents_is_new_if_one_of_them_is():
    tracker = StepTracker()
    a, b = torch.zeros(2), torch.ones(2)
    locate(tracker, 9, (a, b), text=TEXT)
    locate(tracker, 7, (a, b), text=TEXT)
    assert locate(tracker, 7, (a, b), text=OTHER).step == 1
    assert locate(tracker, 7, (a, b + 1), text=TEXT).step == 2


def test_run_broken_off_after_its_first_call_then_the_other_stream():
    tracker, x = StepTracker(), torch.zeros(3)
    assert locate(tracker, 9, x, text=TEXT).stream == (None, 0)  # broken off
    assert locate(tracker, 9, x, text=OTHER).stream == (None, 1)
    found = [locate(tracker, t, text=OTHER.clone()) for t in (8, 7)]
    assert [(each.step, each.stream) for each in found] == [(1, (None, 1)), (2, (None, 1))]


def test_same_request_again_after_a_break_begins_a_run():
    tracker, x = StepTracker(), torch.zeros(3)
    first = locate(tracker, 9, x, text=TEXT)
    locate(tracker, 8, text=TEXT)
    second = locate(tracker, 9, x, text=TEXT)
    assert second.step == 0
    assert second.trajectory is not first.trajectory


# ---- by place ------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(2, 60),
    start=st.integers(0, 10),
    batch=st.integers(1, 3),
    rises=st.booleans(),
)
def test_element_of_timesteps_tells_its_index(length, start, batch, rises):
    timesteps = torch.linspace(900, 1, length).long()
    timesteps = timesteps.flip(0) if rises else timesteps
    tracker, start = StepTracker(), min(start, length - 1)
    for index in range(start, length):
        position = locate(tracker, timesteps[index][None].expand(batch))
        assert (position.step, position.length) == (index, length)
    assert position.run.clock == "place"
    assert position.run.first == start


def test_equal_timesteps_by_place_are_steps():
    timesteps = torch.tensor([9, 7, 7, 5, 5, 0, 0])
    tracker = StepTracker()
    for _ in range(2):
        assert walk(tracker, [t.expand(2) for t in timesteps]) == [0, 1, 2, 3, 4, 5, 6]


def test_new_tensor_of_timesteps_begins_a_run():
    tracker = StepTracker()
    tokens = [
        locate(tracker, t.expand(2)).trajectory
        for timesteps in (torch.tensor([9, 8, 7]), torch.tensor([8, 7, 6]))
        for t in timesteps[:2]
    ]
    assert tokens[0] is tokens[1]
    assert tokens[1] is not tokens[2]
    assert tokens[2] is tokens[3]


def test_same_tensor_of_timesteps_again_begins_a_run():
    tracker, timesteps = StepTracker(), torch.tensor([9, 8, 7])
    runs = [[locate(tracker, t.expand(2)).run for t in timesteps] for _ in range(2)]
    assert runs[0][0] is not runs[1][0]
    assert walk(tracker, [timesteps[0].expand(2), timesteps[0].expand(2)]) == [0, 0]


def test_slice_of_equal_timesteps_is_no_place():
    tracker = StepTracker()
    found = [locate(tracker, torch.full((4,), t)[:1]).step for t in (9.0, 8.0, 7.0)]
    assert found == [0, 1, 2]


def test_late_start_by_place_says_so():
    tracker, timesteps = StepTracker(), torch.arange(10, 0, -1)
    position = locate(tracker, timesteps[4].expand(2))
    assert (position.step, position.run.first) == (4, 4)
    assert position.reason is not None
    assert position.reason.mend == ""  # it is as it should be
    assert "began at step 4" in position.reason.text


# ---- by name -------------------------------------------------------------------------------


def test_context_gives_stream_and_step():
    tracker = StepTracker()
    for step in (0, 1):
        for name in ("cond", "uncond"):
            position = locate(tracker, None, name=name, index=step, num_steps=5)
            assert (position.stream, position.step) == ((name, 0), step)
            assert position.length == 5


def test_context_without_step_counts_by_timestep():
    tracker = StepTracker()
    for step, t in enumerate((9, 8)):
        for name in ("cond", "uncond"):
            position = locate(tracker, t, name=name)
            assert (position.stream, position.step) == ((name, 0), step)


def test_step_index_of_a_run_of_another_length_starts_anew():
    """Its steps go on from those of a run that was given up."""
    tracker = StepTracker()
    walked = [("x", 2, 6), ("x", 3, 6), ("x", 4, 8), ("x", 5, 8)]
    found = [
        locate(tracker, None, name=name, index=index, num_steps=length, text=TEXT)
        for name, index, length in walked
    ]
    assert [each.length for each in found] == [6, 6, 8, 8]
    assert [each.trajectory is found[0].trajectory for each in found] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("jump", [0, 1, 3], ids=["back", "again", "gap"])
def test_step_index_that_does_not_follow_starts_anew(jump):
    tracker = StepTracker()
    found = [locate(tracker, None, name="cond", index=index) for index in (0, 1, jump)]
    assert found[0].trajectory is found[1].trajectory
    assert found[2].step == jump
    assert found[2].trajectory is not found[1].trajectory


def test_named_stream_with_another_prompt_starts_anew():
    tracker = StepTracker()
    first = locate(tracker, 9, name="cond", encoder_hidden_states=TEXT)
    second = locate(tracker, 7, name="cond", encoder_hidden_states=OTHER)
    assert second.step == 1
    assert second.trajectory is not first.trajectory
    assert "encoder_hidden_states" in second.reason.text


# ---- by a scheduler ------------------------------------------------------------------------


def schedule(steps=5, kind=FlowMatchEulerDiscreteScheduler, *, is_watched=False):
    scheduler = kind()
    if is_watched:
        watch(scheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def step(scheduler, index):
    t = scheduler.timesteps[index]
    scheduler.step(torch.ones(1, 3), t, torch.ones(1, 3))


@pytest.mark.parametrize("is_watched", [False, True], ids=["plain", "watched"])
def test_scheduler_tells_the_step_whatever_the_timestep(is_watched):
    scheduler, tracker = schedule(is_watched=is_watched), StepTracker()
    for index in range(5):
        for text in (TEXT, OTHER, TEXT + 7):
            position = locate(tracker, 3.0, scheduler=scheduler, text=text)
            assert (position.step, position.length) == (index, 5)
            assert position.run.clock == "scheduler"
        step(scheduler, index)


def test_scheduler_whose_timesteps_are_set_again_begins_a_run():
    scheduler, tracker = schedule(), StepTracker()
    first = locate(tracker, scheduler.timesteps[0], scheduler=scheduler)
    scheduler.set_timesteps(5)
    second = locate(tracker, scheduler.timesteps[0], scheduler=scheduler)
    assert (first.step, second.step) == (0, 0)
    assert second.run is not first.run


def test_second_order_scheduler_has_a_row_for_each_call():
    scheduler, tracker, found = schedule(4, HeunDiscreteScheduler), StepTracker(), []
    for index in range(len(scheduler.timesteps)):
        found.append(locate(tracker, 3.0 - index, scheduler=scheduler).step)
        step(scheduler, index)
    assert found == list(range(7))


def test_scheduler_that_stands_still_is_not_listened_to():
    """A pipeline may step a deep copy of the scheduler that it was given."""
    scheduler, tracker = schedule(), StepTracker()
    timesteps = scheduler.timesteps.clone()
    found = [
        locate(tracker, t.expand(2), scheduler=scheduler, text=text)
        for t in timesteps
        for text in (TEXT, OTHER)
    ]
    assert [each.step for each in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len({id(each.trajectory) for each in found}) == 2
    assert len({each.run for each in found}) == 1
    assert found[-1].run.clock == "place"


def test_scheduler_does_not_stand_still_while_a_timestep_is_only_written_again():
    """Two streams of one prompt, whose timestep is written before each call."""
    scheduler, tracker = schedule(), StepTracker()
    found, timestep = [], torch.zeros(2)
    for index, t in enumerate(scheduler.timesteps):
        for _ in range(2):
            timestep.fill_(float(t))
            found.append(locate(tracker, timestep, scheduler=scheduler, text=TEXT))
        step(scheduler, index)
    assert [each.step for each in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found[-1].run.clock == "scheduler"


def test_scheduler_that_stood_still_is_listened_to_in_the_next_run():
    scheduler, tracker = schedule(), StepTracker()
    walk(tracker, scheduler.timesteps.clone(), scheduler=scheduler, text=TEXT)
    scheduler.set_timesteps(5)
    found = []
    for index in range(5):
        found.append(locate(tracker, 3.0 + index, scheduler=scheduler, text=TEXT))
        step(scheduler, index)
    assert [each.step for each in found] == [0, 1, 2, 3, 4]
    assert found[-1].run.clock == "scheduler"


@pytest.mark.parametrize("is_watched", [False, True], ids=["plain", "watched"])
def test_late_start_of_a_scheduler_is_its_own_step(is_watched):
    scheduler, tracker = schedule(10, is_watched=is_watched), StepTracker()
    scheduler.set_begin_index(4)
    found = []
    for index in range(4, 10):
        found.append(locate(tracker, scheduler.timesteps[index] / 1000, scheduler=scheduler))
        step(scheduler, index)
    assert [each.step for each in found] == [4, 5, 6, 7, 8, 9]
    assert found[0].reason.mend == ""


def test_steps_without_a_call_are_left_out_and_said():
    """Guidance that pauses, or a pipeline that was interrupted for a while."""
    scheduler, tracker = schedule(8, EulerDiscreteScheduler), StepTracker()
    found = []
    for index in range(8):
        if index not in (3, 4):
            found.append(locate(tracker, 3.0 + index, scheduler=scheduler, text=TEXT))
        step(scheduler, index)
    assert [each.step for each in found] == [0, 1, 2, 5, 6, 7]
    assert len({each.trajectory for each in found}) == 1
    assert found[3].reason.text == "it was not called at steps 3 to 4"


def test_stream_that_joins_late_says_so():
    scheduler, tracker = schedule(), StepTracker()
    locate(tracker, 3.0, scheduler=scheduler, text=TEXT)
    step(scheduler, 0)
    locate(tracker, 2.0, scheduler=scheduler, text=TEXT)
    joined = locate(tracker, 2.0, scheduler=scheduler, text=OTHER)
    assert joined.stream == (None, 1)
    assert joined.reason is not None


def test_mixed_timesteps_compute_and_keep_nothing():
    tracker = StepTracker()
    first = locate(tracker, torch.tensor([9.0, 7.0]), text=TEXT)
    second = locate(tracker, torch.tensor([7.0, 4.0]), text=TEXT)
    assert (first.computes, second.computes) == (False, True)
    assert second.reason.kind == "mixed"
    assert second.trajectory is not first.trajectory


# ---- errors --------------------------------------------------------------------------------


def test_steps_without_a_timestep_say_what_to_do():
    with pytest.raises(StepError, match="cache_context"):
        StepTracker().locate(make_call(None), lambda: None)


def test_reset_forgets():
    tracker = StepTracker()
    first = locate(tracker, 9)
    tracker.reset()
    second = locate(tracker, 8)
    assert second.step == 0
    assert second.trajectory is not first.trajectory
