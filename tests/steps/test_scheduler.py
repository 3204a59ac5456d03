"""Where schedulers stand: told by their watch, their index, or their timesteps."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from dqar_fx.pipeline.watch import unwatch, watch
from dqar_fx.steps.scheduler import WATCH, SchedulerReader

# diffusers gives a tensor to numpy where that asks for a keyword that tensors do not have
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 6
SCHEDULERS = [
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
]


@pytest.fixture(params=SCHEDULERS, ids=lambda kind: kind.__name__)
def scheduler(request):
    return request.param()


def run(scheduler, reader=None, *, calls=2, spell=lambda t: t, start=0):
    """Indices and runs that are read at each call, ``calls`` of them at a step."""
    reader = SchedulerReader(scheduler) if reader is None else reader
    latent = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for t in scheduler.timesteps[start:]:
        given = spell(t)
        found += [reader.read(given) for _ in range(calls)]
        latent = scheduler.step(0.1 * latent, t, latent, return_dict=False)[0]
    return [index for _, index in found], {id(each) for each, _ in found}


@pytest.mark.parametrize("is_watched", [False, True], ids=["plain", "watched"])
def test_scheduler_tells_the_step_at_each_call(scheduler, is_watched):
    if is_watched:
        watch(scheduler)
    reader = SchedulerReader(scheduler)
    runs = set()
    for _ in range(2):
        scheduler.set_timesteps(STEPS)
        rows = len(scheduler.timesteps)
        indices, own = run(scheduler, reader)
        assert indices == [i for i in range(rows) for _ in range(2)]
        assert len(own) == 1
        runs |= own
    assert len(runs) == 2


@pytest.mark.parametrize("is_watched", [False, True], ids=["plain", "watched"])
def test_scheduler_that_starts_late_tells_its_own_step(scheduler, is_watched):
    if is_watched:
        watch(scheduler)
    scheduler.set_timesteps(STEPS)
    rows, start = len(scheduler.timesteps), 2
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    assert run(scheduler, start=start, calls=1)[0] == list(range(start, rows))


def test_watched_scheduler_counts_steps_though_timesteps_are_not_its_own():
    """Of a scheduler without an index, whose pipeline passes other timesteps on."""
    scheduler = DDIMScheduler()
    watch(scheduler)
    scheduler.set_timesteps(STEPS)
    assert run(scheduler, spell=lambda t: t * 0 + 5, calls=1)[0] == list(range(STEPS))


def test_watched_scheduler_counts_steps_before_the_first_call_once():
    """As of a denoiser that only the later steps call."""
    scheduler = DDIMScheduler()
    watch(scheduler)
    scheduler.set_timesteps(STEPS)
    latent = torch.zeros(1, 4)
    for t in scheduler.timesteps[:2]:
        scheduler.step(latent, t, latent)
    assert run(scheduler, start=2, calls=1)[0] == list(range(2, STEPS))


def test_scheduler_that_shows_no_timesteps_tells_nothing():
    class Other:
        timesteps = None

    assert SchedulerReader(Other()).read(torch.tensor(3)) is None


def test_scheduler_without_an_index_does_not_tell_what_it_cannot_find():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    assert SchedulerReader(scheduler).read(torch.tensor(5000)) is None


def test_shape_of_a_run_counts_calls_of_second_order_schedulers():
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    found, _ = SchedulerReader(scheduler).read(scheduler.timesteps[0])
    assert found.shape.num_rows == 2 * STEPS - 1


def test_watched_scheduler_is_what_it_was():
    scheduler = EulerDiscreteScheduler()
    watch(scheduler)
    assert isinstance(scheduler, EulerDiscreteScheduler)
    assert type(scheduler).__name__ == "EulerDiscreteScheduler"
    assert EulerDiscreteScheduler.from_config(scheduler.config).__dict__.get(WATCH) is None
    unwatch(scheduler)
    assert type(scheduler) is EulerDiscreteScheduler
    assert WATCH not in scheduler.__dict__


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_copy_of_a_watched_scheduler_steps_and_is_not_watched(make):
    scheduler = EulerDiscreteScheduler()
    watch(scheduler)
    scheduler.set_timesteps(STEPS)
    other = make(scheduler)
    assert type(other) is EulerDiscreteScheduler
    other.step(torch.ones(1, 4), other.timesteps[0], torch.ones(1, 4))
    assert (scheduler.__dict__[WATCH].steps, other.__dict__.get(WATCH)) == (0, None)
    assert run(other, start=1, calls=1)[0] == list(range(1, STEPS))


def test_scheduler_is_watched_as_long_as_anyone_does():
    scheduler = EulerDiscreteScheduler()
    watch(scheduler)
    watch(scheduler)
    unwatch(scheduler)
    assert WATCH in scheduler.__dict__
    unwatch(scheduler)
    assert WATCH not in scheduler.__dict__
