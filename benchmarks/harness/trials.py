"""Run contenders side by side: a warm-up each, then repeats in rotating order.

What is timed is each call of the denoiser inside the stock pipeline's own loop, by hooks that
are there for that run only. The scheduler, the guidance and the VAE are not timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness.contenders import Contender, Workshop
from benchmarks.harness.machine import set_up_compiler
from benchmarks.harness.pipelines import Task
from benchmarks.harness.rows import noted_failure
from benchmarks.harness.timing import Compiled, hooked, rotate, timed_calls
from dqar_fx import Denoiser

MIN_REPEATS = 3
"""Repeats that are made whatever the time."""


@dataclass
class Trial:
    """A contender and what was measured of it.

    Attributes:
        contender: Who it is.
        macs: Multiply-accumulates of a trajectory; None where not counted.
        module: What runs in the pipeline; None before the warm-up.
        images: Its pictures.
        warmup_s: Time of the first trajectory.
        compiled: Graphs and breaks of the first trajectory.
        recompiles: Graphs compiled after the first trajectory.
        num_streams: Streams of a transformed model.
        step_s: Per repeat, the time of each step.
        error: What went wrong, or None.
    """

    contender: Contender
    macs: int | None
    module: Any = None
    images: torch.Tensor | None = None
    warmup_s: float = 0.0
    compiled: Compiled = field(default=Compiled(0, 0))
    recompiles: int = 0
    num_streams: int = 0
    step_s: list[list[float]] = field(default_factory=list)
    error: str | None = None

    @property
    def was_built(self) -> bool:
        """Whether the first trajectory captured or compiled anything."""
        return self.compiled.graphs > 0 or isinstance(self.module, Denoiser)

    @property
    def trajectory_s(self) -> list[float]:
        """Per repeat, the time of the trajectory."""
        return [sum(steps) for steps in self.step_s]


@dataclass(frozen=True)
class Arena:
    """Where contenders run.

    Attributes:
        pipe: The pipeline.
        task: The pictures.
        workshop: Builds what runs.
        device: Of the pipeline.
    """

    pipe: Any
    task: Task
    workshop: Workshop
    device: torch.device

    def run(self, module: Any, steps: int) -> tuple[torch.Tensor, list[float]]:
        """One trajectory: pictures, and the time of each step."""
        self.pipe.transformer = module
        with timed_calls(module, self.device) as step_s:
            images = self.task.generate(self.pipe, steps)
        return images, step_s

    def prepare(self) -> None:
        """Do once what no contender should pay for."""
        self.run(self.workshop.original, 1)
        if self.workshop.lowering != "eager":
            set_up_compiler(self.device)

    def warm_up(self, trial: Trial) -> None:
        """The first trajectory of a contender, with its capture and compilation."""
        before = Compiled.so_far()
        trial.module = self.workshop.build(trial.contender)
        with counted_streams(trial.module) as streams:
            trial.images, step_s = self.run(trial.module, trial.contender.steps)
        trial.warmup_s = sum(step_s)
        trial.compiled = Compiled.so_far() - before
        trial.num_streams = max(streams, default=0)

    def repeat(self, trial: Trial) -> None:
        """One more trajectory of a contender."""
        before = Compiled.so_far()
        _, step_s = self.run(trial.module, trial.contender.steps)
        trial.recompiles += (Compiled.so_far() - before).graphs
        trial.step_s.append(step_s)


@contextmanager
def counted_streams(module: Any) -> Iterator[list[int]]:
    """Append the streams of a transformed model after each call, while inside.

    The pipeline resets the denoiser at its end, so that they cannot be counted afterwards.
    """
    counts: list[int] = []

    def count(*_: Any) -> None:
        if hasattr(module, "program"):
            counts.append(len(module.program.streams))

    with hooked(module.register_forward_hook(count)):
        yield counts


def attempt(action: Callable[[Trial], None], trial: Trial) -> None:
    """Let a contender do something, unless it has failed; a failure is noted."""
    if trial.error is None:
        with noted_failure(trial.contender.name, partial(setattr, trial, "error")):
            action(trial)


def compete(arena: Arena, trials: Sequence[Trial], *, repeats: int, deadline: float) -> None:
    """Warm up all contenders, then repeat all of them in rotating order.

    Args:
        arena: Where they run.
        trials: The contenders; what is measured is written here.
        repeats: How many repeats.
        deadline: Value of ``time.perf_counter()`` that no repeat is expected to outlast, once
            there are `MIN_REPEATS`.
    """
    arena.prepare()
    with tqdm(total=len(trials) * (1 + repeats), desc="benchmark", unit="run") as bar:
        for trial in trials:
            bar.set_description(f"warm-up: {trial.contender.name}")
            attempt(arena.warm_up, trial)
            bar.update()
        for number in range(repeats):
            bar.set_description(f"repeat {number + 1} of {repeats}")
            begun = time.perf_counter()
            for trial in rotate(trials, number):
                attempt(arena.repeat, trial)
                bar.update()
            expected_end = 2 * time.perf_counter() - begun
            if number + 1 >= MIN_REPEATS and expected_end > deadline:
                break
