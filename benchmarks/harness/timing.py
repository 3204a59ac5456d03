"""Timing side by side: all take turns, and what is compared runs close together in time."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch._dynamo.utils import counters

from benchmarks.harness.geometry import draw_timesteps
from benchmarks.harness.machine import synchronise
from dqar_fx import Denoiser

Item = TypeVar("Item")


@dataclass(frozen=True)
class Spread:
    """A median, and what lies around it.

    Attributes:
        median: Of some values.
        low: The lowest of them, or the lower quartile.
        high: The highest, or the upper quartile.
    """

    median: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return self.show(form)

    def show(self, form: str, to: str = "-") -> str:
        """As text, with ``to`` between the lowest and the highest."""
        return f"{self.median:{form}} ({self.low:{form}}{to}{self.high:{form}})"


def find_range(values: Sequence[float]) -> Spread:
    """The median, the lowest and the highest."""
    return Spread(statistics.median(values), min(values), max(values))


def find_quartiles(
    values: Sequence[float], method: Literal["inclusive", "exclusive"] = "inclusive"
) -> Spread:
    """The median and the quartiles; a single value is all of them."""
    if len(values) == 1:
        return find_range(values)
    low, median, high = statistics.quantiles(values, n=4, method=method)
    return Spread(median, low, high)


def take_ratios(base: Iterable[float], own: Iterable[float]) -> list[float]:
    """Speed of each pair of times: the base's by one's own; as many as both have."""
    return [base_s / own_s for base_s, own_s in zip(base, own, strict=False)]


def describe_speed(ratios: Sequence[float]) -> dict[str, float | None]:
    """What rows say of paired speeds; None without any."""
    names = ("speed_median", "speed_min", "speed_max")
    if not ratios:
        return dict.fromkeys(names)
    return dict(zip(names, (statistics.median(ratios), min(ratios), max(ratios)), strict=True))


def rotate(items: Sequence[Item], number: int) -> list[Item]:
    """The items in turn, from another one for each number."""
    first = number % len(items) if items else 0
    return [*items[first:], *items[:first]]


class Subject(Protocol):
    """What a class-conditional DiT is called with."""

    @property
    def batch(self) -> int:
        """Samples per call."""

    def draw_latent(self) -> torch.Tensor:
        """A latent of noise."""

    def labels(self) -> torch.Tensor:
        """A class for each sample."""


def time_steps(
    model: Callable[..., Any], subject: Subject, timesteps: torch.Tensor
) -> Iterator[float]:
    """Run a trajectory step by step, as stock pipelines call; the time of each step."""
    labels = subject.labels()
    for timestep in timesteps:
        latent = subject.draw_latent()
        start = time.perf_counter()
        model(latent, timestep=timestep.expand(subject.batch), class_labels=labels)
        yield time.perf_counter() - start


def run_lockstep(
    models: Sequence[Callable[..., Any]], subject: Subject, steps: int
) -> list[float]:
    """One trajectory of each model, step by step in turn; the time of each.

    Each step has the same fresh latent for all, so that they share what the machine does
    meanwhile.
    """
    for model in models:
        if isinstance(model, Denoiser):
            model.reset()
    took_s = [0.0] * len(models)
    labels = subject.labels()
    for step, timestep in enumerate(draw_timesteps(steps)):
        latent = subject.draw_latent()
        for number in rotate(range(len(models)), step):  # nobody always follows the same one
            # A latent of its own for each: nothing that was read may be in a cache.
            own_latent, timesteps = latent.clone(), timestep.expand(subject.batch)
            start = time.perf_counter()
            models[number](own_latent, timestep=timesteps, class_labels=labels)
            took_s[number] += time.perf_counter() - start
    return took_s


@dataclass(frozen=True)
class Compiled:
    """What Dynamo has done so far: graphs compiled, and graph breaks."""

    graphs: int
    breaks: int

    @classmethod
    def so_far(cls) -> "Compiled":
        """The counts of this process."""
        return cls(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))

    def __sub__(self, other: "Compiled") -> "Compiled":
        return Compiled(self.graphs - other.graphs, self.breaks - other.breaks)


@contextmanager
def timed_calls(module: Any, device: torch.device) -> Iterator[list[float]]:
    """Append the time of each call of a module, device included, while inside."""
    step_s: list[float] = []
    start = 0.0

    def begin(*_: Any) -> None:
        nonlocal start
        synchronise(device)
        start = time.perf_counter()

    def end(*_: Any) -> None:
        synchronise(device)
        step_s.append(time.perf_counter() - start)

    with hooked(module.register_forward_pre_hook(begin), module.register_forward_hook(end)):
        yield step_s


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
