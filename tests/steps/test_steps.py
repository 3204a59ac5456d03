"""Which step and stream a call is: every clock, and what breaks a trajectory off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import StepError
from dqar_fx.steps.steps import NamedStream, StepTracker

LABELS = (torch.tensor([1]), torch.tensor([2]))


def stamp(value):
    return torch.full((2,), float(value))


def latent():
    return torch.zeros(1)


def locate(tracker, timestep, x=None, labels=LABELS[0]):
    position = tracker.locate(timestep, latent() if x is None else x, [labels])
    return position.step, position.stream[1]


def test_steps_follow_falling_timesteps():
    tracker = StepTracker()
    assert [locate(tracker, stamp(t)) for t in (9, 7, 2)] == [(0, 0), (1, 0), (2, 0)]


def test_steps_start_anew_at_a_higher_timestep():
    tracker = StepTracker()
    first = tracker.locate(stamp(9), latent(), [])
    tracker.locate(stamp(8), latent(), [])
    second = tracker.locate(stamp(9), latent(), [])
    assert second.step == 0
    assert second.trajectory is not first.trajectory


def test_steps_same_timestep_and_latent_is_the_next_stream():
    tracker = StepTracker()
    for step, t in enumerate((9, 8, 7)):
        x = latent()
        assert locate(tracker, stamp(t), x, LABELS[0]) == (step, 0)
        assert locate(tracker, stamp(t), x, LABELS[1]) == (step, 1)


def test_steps_same_timestep_and_another_latent_starts_anew():
    tracker = StepTracker()
    first = tracker.locate(stamp(9), latent(), [])
    second = tracker.locate(stamp(9), latent(), [])
    assert second.step == 0
    assert second.stream == (None, 0)
    assert second.trajectory is not first.trajectory


def test_steps_latent_written_in_place_is_another_latent():
    tracker, x = StepTracker(), latent()
    first = tracker.locate(stamp(9), x, [])
    x.add_(1)
    assert tracker.locate(stamp(9), x, []).trajectory is not first.trajectory


def test_steps_streams_are_told_apart_by_their_conditioning():
    """A run broken off after its first call, then another with the same latent."""
    tracker, x = StepTracker(), latent()
    assert locate(tracker, stamp(9), x, LABELS[0]) == (0, 0)  # broken off
    assert locate(tracker, stamp(9), x, LABELS[1]) == (0, 1)
    assert locate(tracker, stamp(8), latent(), LABELS[1]) == (1, 1)
    assert locate(tracker, stamp(7), latent(), LABELS[1].clone()) == (2, 1)


def test_steps_context_gives_stream_and_index():
    tracker = StepTracker()
    for step in (0, 1):
        for name in ("cond", "uncond"):
            tracker.context = NamedStream(name, step)
            position = tracker.locate(None, latent(), [])
            assert (position.stream, position.step) == ((name, 0), step)


def test_steps_context_without_index_counts_by_timestep():
    tracker = StepTracker()
    for step, t in enumerate((9, 8)):
        for name in ("cond", "uncond"):
            tracker.context = NamedStream(name)
            position = tracker.locate(stamp(t), latent(), [])
            assert (position.stream, position.step) == ((name, 0), step)


@pytest.mark.parametrize("jump", [0, 1, 3], ids=["back", "back-one", "gap"])
def test_steps_index_that_does_not_follow_starts_anew(jump):
    tracker = StepTracker()
    positions = []
    for index in (0, 1, jump):
        tracker.context = NamedStream("cond", index)
        positions.append(tracker.locate(None, latent(), []))
    assert positions[0].trajectory is positions[1].trajectory
    assert positions[2].trajectory is not positions[1].trajectory
    assert positions[2].step == jump


class Scheduler:
    timesteps = torch.arange(5, 0, -1)
    step_index: int | None = None


def test_steps_attached_scheduler_tells_the_index_and_the_length():
    tracker = StepTracker()
    tracker.scheduler = Scheduler()
    found = []
    for index in (None, 1, 2):
        tracker.scheduler.step_index = index
        position = tracker.locate(stamp(0), latent(), [])
        found.append((position.step, position.length))
    assert found == [(0, 5), (1, 5), (2, 5)]


@settings(max_examples=50, deadline=None)
@given(length=st.integers(2, 60), start=st.integers(0, 10), batch=st.integers(1, 3))
def test_steps_element_of_a_schedule_tells_its_index(length, start, batch):
    timesteps = torch.linspace(900, 1, length).long()
    tracker = StepTracker()
    for index in range(min(start, length - 1), length):
        t = timesteps[index]
        position = tracker.locate(t[None].expand(batch), latent(), [])
        assert (position.step, position.length) == (index, length)


def test_steps_repeated_timesteps_of_a_second_order_schedule_are_steps():
    timesteps = torch.tensor([9, 7, 7, 5, 5])
    tracker = StepTracker()
    found = [tracker.locate(t.expand(2), latent(), []).step for t in timesteps]
    assert found == [0, 1, 2, 3, 4]


def test_steps_new_schedule_tensor_starts_anew():
    tracker = StepTracker()
    tokens = [
        tracker.locate(t.expand(2), latent(), []).trajectory
        for timesteps in (torch.tensor([9, 8, 7]), torch.tensor([8, 7, 6]))
        for t in timesteps[:2]
    ]
    assert tokens[0] is tokens[1]
    assert tokens[1] is not tokens[2]
    assert tokens[2] is tokens[3]


def test_steps_slice_of_equal_timesteps_is_no_schedule():
    tracker = StepTracker()
    found = []
    for t in (9.0, 8.0, 7.0):
        batch = torch.full((4,), t)
        found.append(tracker.locate(batch[:1], latent(), []).step)
    assert found == [0, 1, 2]


def test_steps_without_a_timestep_say_what_to_do():
    with pytest.raises(StepError, match="cache_context"):
        StepTracker().locate(7, latent(), [])


def test_steps_reset_forgets():
    tracker = StepTracker()
    first = tracker.locate(stamp(9), latent(), [])
    tracker.reset()
    second = tracker.locate(stamp(8), latent(), [])
    assert second.step == 0
    assert second.trajectory is not first.trajectory
