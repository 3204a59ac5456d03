"""The timesteps of a run: read off the tensor that a call's timestep is an element of."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dqar_fx.steps.timesteps import (
    Timesteps,
    TimestepSources,
    find_start,
    find_value,
    is_single,
    range_of,
)

FALLING = torch.tensor([900.0, 600.0, 300.0, 1.0])


@pytest.mark.parametrize(
    ("given", "is_monotonic"),
    [
        ([9, 7, 2], True),
        ([1, 4, 8], True),
        ([9, 7, 7, 2, 2], True),
        ([1, 1, 3], True),
        ([5, 5, 5], False),
        ([9, 2, 7], False),
        ([1, 4, 2], False),
    ],
    ids=str,
)
def test_timesteps_are_a_loop_if_they_fall_or_rise(given, is_monotonic):
    assert Timesteps.of(torch.tensor(given)).is_monotonic is is_monotonic


@pytest.mark.parametrize("timesteps", [FALLING, FALLING.flip(0)], ids=["fall", "rise"])
def test_base_tells_the_place_of_an_element(timesteps):
    sources = TimestepSources()
    for index, t in enumerate(timesteps):
        for spelled in (t, t[None], t.expand(3), t.reshape(1, 1).expand(2, 5)):
            found = sources.read_base(spelled)
            assert found is not None
            assert (found[0].values, found[1]) == (timesteps.tolist(), index)


def test_base_of_what_is_no_loop_tells_nothing():
    sources = TimestepSources()
    equal, mixed = torch.full((4,), 3.0), torch.tensor([3.0, 9.0, 1.0])
    table = torch.stack([FALLING, FALLING])
    own = torch.tensor(900.0)
    for timestep in (equal[:1], mixed[1], table[0, 1], own, FALLING[:2], FALLING[0].double()):
        assert sources.read_base(timestep) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_base_that_is_written_to_is_read_again(mode):
    timesteps, sources = FALLING.clone(), TimestepSources()
    with mode():
        assert sources.read_base(timesteps[1])[0].values == FALLING.tolist()
        timesteps += 7
        assert sources.read_base(timesteps[1])[0].values == (FALLING + 7).tolist()


def test_attached_timesteps_count_where_the_call_has_their_value_at_its_step():
    sources = TimestepSources()
    sources.attached = FALLING
    call = torch.full((2,), 600.0)
    assert sources.find(call, 1, reads=True).values == FALLING.tolist()
    assert sources.find(call, 2, reads=True) is None
    assert sources.find(torch.tensor([600.0, 300.0]), 1, reads=True) is None


@pytest.mark.parametrize(
    "spell",
    [
        lambda t: t,
        lambda t: t / 1000,
        lambda t: 1 - t / 1000,
        lambda t: (1000 - t) / 1000,
        lambda t: (t / 1000).bfloat16(),
        lambda t: t.bfloat16() / 1000,
        lambda t: t.bfloat16(),
    ],
    ids=["as it is", "Flux", "Lumina", "Z-Image", "bf16 last", "bf16 first", "bf16"],
)
def test_value_is_found_among_the_timesteps_of_a_scheduler(spell):
    """A thousandth of the first of them, 1000, is the last one."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    given = [spell(t).expand(2) + 0 for t in scheduler.timesteps]
    found = [find_value(t, scheduler.timesteps, scheduler) for t in given[1:]]
    assert found == list(range(1, 8))
    for first in (given[0], spell(scheduler.timesteps[0])[None].expand(2)):
        assert find_start(first, scheduler.timesteps, scheduler) == 0


def test_value_of_an_element_is_its_place_though_values_repeat():
    timesteps = torch.tensor([9.0, 7.0, 7.0, 2.0])
    assert [find_value(t, timesteps, None) for t in timesteps] == [0, 1, 2, 3]
    assert find_value(torch.full((2,), 5.0), timesteps, None) is None
    assert find_value(torch.tensor([9.0, 7.0]), timesteps, None) is None
    assert find_value(9, timesteps, None) is None


def test_single_timesteps_are_told_by_their_layout():
    assert is_single(torch.tensor(3.0))
    assert is_single(torch.tensor([[3.0]]).expand(4, 7))
    assert not is_single(torch.full((2,), 3.0))


def test_range_is_of_the_greatest_and_the_least():
    assert range_of(torch.tensor([4, 9, 1])) == (9.0, 1.0)
    assert range_of(torch.tensor(4).expand(3)) == (4.0, 4.0)
