"""Trajectories of two models in turn, timed by the device's own clock where it has one.

Whole trajectories take turns, not steps: within one, the host may run ahead of the device, as
it does in a pipeline. What is timed lies between two marks in the device's queue; the host
waits for the device before the first and after the second.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.accelerator.cases import Stage
from benchmarks.accelerator.subjects import Call, Subject
from benchmarks.harness.machine import synchronise
from benchmarks.harness.timing import Compiled, find_quartiles, take_ratios
from dqar_fx import Denoiser

MIN_PAIRS = 2
"""Pairs that are timed whatever the time."""
Model = Callable[..., Any]


@dataclass(frozen=True)
class Took:
    """Times of one trajectory, in seconds.

    Attributes:
        device_s: Between the marks in the device's queue.
        submit_s: Until the host had submitted everything.
    """

    device_s: float
    submit_s: float


@dataclass
class Pairs:
    """What two models took, in turn.

    Attributes:
        base: Per pair, the trajectory of the first.
        own: That of the second.
        first_s: The second's first trajectory, with its capture and compilation.
        compiled: What Dynamo did in that.
        again: What it did in the pairs: nothing, unless something is wrong.
    """

    base: list[Took] = field(default_factory=list)
    own: list[Took] = field(default_factory=list)
    first_s: float = 0.0
    compiled: Compiled = field(default=Compiled(0, 0))
    again: Compiled = field(default=Compiled(0, 0))

    def describe(self, steps: int) -> dict[str, Any]:
        """Figures of a row."""
        base, own = ([took.device_s for took in each] for each in (self.base, self.own))
        speed = find_quartiles(take_ratios(base, own))
        return {
            "speed": speed.median,
            "speed_low": speed.low,
            "speed_high": speed.high,
            "pairs": len(own),
            "base_step_ms": 1e3 * find_quartiles(base).median / steps,
            "own_step_ms": 1e3 * find_quartiles(own).median / steps,
            "own_submit_ms": 1e3
            * find_quartiles([t.submit_s for t in self.own]).median
            / steps,
            "first_s": self.first_s,
            "graphs": self.compiled.graphs,
            "breaks": self.compiled.breaks,
            "recompiles": self.again.graphs,
        }


def run_trajectory(model: Model, calls: list[Call], device: torch.device) -> Took:
    """One trajectory from its calls, which are made already."""
    if isinstance(model, Denoiser):
        model._reset_stateful_cache()  # as a pipeline at its end: recorded graphs stay
    synchronise(device)
    with Marks(device) as read:
        start = time.perf_counter()
        for call in calls:
            model(**call)
        submit_s = time.perf_counter() - start
    return Took(read(), submit_s)


class Marks:
    """Between two marks in a device's queue; gives what tells the seconds afterwards."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Callable[[], float]:
        if self.device.type == "cuda":
            self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.begin.record()
        self.start = time.perf_counter()
        return lambda: self.seconds

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.end.record()
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.start
        if self.device.type == "cuda":
            self.seconds = self.begin.elapsed_time(self.end) / 1e3


def race(stage: Stage, subject: Subject, base: Model, own: Model, steps: int) -> Pairs:
    """Pairs of trajectories, as many as the scale has and the time allows.

    Both have run before the first pair: what is captured and compiled is not timed in it.
    """
    pairs, before = Pairs(), Compiled.so_far()
    calls = list(subject.calls(steps))
    start = time.perf_counter()
    run_trajectory(own, calls, stage.device)
    pairs.first_s = time.perf_counter() - start
    pairs.compiled = Compiled.so_far() - before
    for model in (base, own):
        run_trajectory(model, calls, stage.device)  # the second time a graph is recorded
    before = Compiled.so_far()
    for number in count_pairs(stage):
        calls = list(subject.calls(steps))  # of a prompt that neither has seen
        turns = [(base, pairs.base), (own, pairs.own)]
        for model, found in turns if number % 2 else reversed(turns):
            found.append(run_trajectory(model, calls, stage.device))
    pairs.again = Compiled.so_far() - before
    return pairs


def count_pairs(stage: Stage) -> Iterator[int]:
    """Numbers of pairs, until there are enough or the case's time is over."""
    start = time.monotonic()
    for number in range(stage.scale.repeats):
        is_late = time.monotonic() - start > stage.scale.case_s or stage.left_s <= 0
        if is_late and number >= MIN_PAIRS:
            return
        yield number


@dataclass(frozen=True)
class Launches:
    """What a profiler saw of a trajectory.

    Attributes:
        kernels: Launched per step.
        busy_ms: Time of these, per step.
        idle_ms: What is left of the step's time.
    """

    kernels: float
    busy_ms: float
    idle_ms: float


def count_launches(model: Model, subject: Subject, steps: int, step_ms: float) -> Launches:
    """Kernels of a step on average; ``step_ms`` is what it takes unobserved."""
    calls, device = list(subject.calls(steps)), subject.latent.device
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run_trajectory(model, calls, device)
    on_device = [
        event
        for event in seen.events()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    busy_ms = sum(event.device_time_total for event in on_device) / 1e3 / steps
    return Launches(len(on_device) / steps, busy_ms, step_ms - busy_ms)
