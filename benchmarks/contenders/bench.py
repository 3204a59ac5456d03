"""Where contenders run: one pipeline, the same pictures, one trajectory at a time.

The time of a trajectory is that from the beginning of the denoiser's first call to the end of
its last: with the scheduler and the guidance between, without the noise and the VAE.
"""

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import nn

from benchmarks.ablation.protocol import Protocol
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.kinds import EAGER
from benchmarks.harness.machine import synchronise
from benchmarks.harness.macs import count_macs
from benchmarks.harness.pipelines import Task, load_pipeline, name_classes
from benchmarks.harness.timing import hooked
from dqar_fx.calibration.pipeline_run import count_timesteps

CAN_ISOLATE = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""Whether copies can have limits of recompiles of their own: since torch 2.13."""


class StandIn(nn.Module):
    """Is called in the place of a module, and has its attributes.

    Args:
        inner: That module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """The inner module's, where this one has none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Counting(StandIn):
    """Counts the multiply-accumulates of all calls."""

    macs = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module's result."""
        results: list[Any] = []
        self.macs += count_macs(lambda: results.append(self.inner(*args, **kwargs)))
        return results[0]


@dataclass(frozen=True, eq=False)
class Bench:
    """A pipeline, its model, and the pictures.

    Attributes:
        pipe: The pipeline.
        original: Its model, untransformed.
        protocol: Which pictures.
        samples: Of these, how many are generated in one batch.
        steps: Denoising steps of the full run.
        device: Of the pipeline.
        lowering: How dqar_fx compiles: ``"regional"``, ``"whole"``, or options of both.
        made: What was made once for several contenders, by a key of any kind.
    """

    pipe: Any
    original: nn.Module
    protocol: Protocol
    samples: int
    steps: int
    device: torch.device
    lowering: str | Mapping[str, Any]
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, options: Any, lowering: str | Mapping[str, Any]) -> Self:
        """A bench with the pipeline that options name, all of its classes in turn.

        Raises:
            InputError: The pipeline cannot be loaded.
        """
        pipe = load_pipeline(options)
        names = name_classes(pipe)
        protocol = Protocol(names, tuple(sorted(names)), options.guidance)
        sizes = options.samples, options.steps, options.device
        return cls(pipe, pipe.transformer, protocol, *sizes, lowering)

    @cached_property
    def compiled(self) -> nn.Module:
        """The untransformed model as one graph; shared by those who use it."""
        return self.compile(self.original, fullgraph=True, dynamic=False)

    def compile(self, model: nn.Module, **keywords: Any) -> Any:
        """``torch.compile``, with graphs and a limit of recompiles of its own.

        Otherwise copies of a model would share those of their code: the ninth to be compiled
        would run in eager mode without a word.
        """
        own = {"isolate_recompiles": True} if CAN_ISOLATE else {}
        return torch.compile(model, **own, **keywords)

    def prepare_clone(self) -> None:
        """Make the next clone now: a peer's hooks need one, which is not its memory."""
        self.made["clone"] = copy.deepcopy(self.original)

    def clone(self) -> nn.Module:
        """A copy of the model that hooks may be put on."""
        clone: nn.Module | None = self.made.pop("clone", None)
        return copy.deepcopy(self.original) if clone is None else clone

    def once(self, make: Callable[["Bench"], Any]) -> Any:
        """What a function makes of this bench; it is called once."""
        if make not in self.made:
            self.made[make] = make(self)
        return self.made[make]

    def task(self, number: int) -> Task:
        """The pictures of a numbered trajectory: others for each number."""
        return self.protocol.task(0, number * self.samples, self.samples)

    def run(self, entrant: Entrant, steps: int, task: Task) -> tuple[torch.Tensor, float]:
        """One trajectory: pictures ``[samples, C, H, W]`` in [0, 1], and its time."""
        calls = self.count_evaluations(entrant, steps)
        with self.entered(entrant), timed(entrant.module, calls, self.device) as marks:
            images = task.generate(self.pipe, steps)
        begin, end = marks
        return images, end - begin

    def count_evaluations(self, entrant: Entrant, steps: int) -> int:
        """Calls of the denoiser in so many steps: solvers of second order have two in one."""
        return count_timesteps(entrant.scheduler or self.pipe.scheduler, steps)

    @contextmanager
    def entered(self, entrant: Entrant) -> Iterator[None]:
        """With a contender in the pipeline, and nothing left of its last trajectory."""
        before = self.pipe.scheduler
        self.pipe.transformer = entrant.module
        self.pipe.scheduler = entrant.scheduler or before
        try:
            with entrant.fresh():
                yield
        finally:
            self.pipe.transformer, self.pipe.scheduler = self.original, before

    @torch.no_grad()
    def count_macs(self, contender: Contender) -> int:
        """Multiply-accumulates of a trajectory in eager mode, counted while it runs.

        What is not computed is not counted, whoever decides it and on what grounds. Modes of
        one setting are counted once.
        """
        if contender.setting not in self.made:
            entrant = contender.recipe.build(self, EAGER)
            counting = Counting(entrant.module)
            first = 1 if entrant.scheduler is None else contender.steps  # which it insists on
            with self.entered(entrant), warnings.catch_warnings(action="ignore"):
                self.task(0).generate(self.pipe, first)  # what is done once is not counted
            with self.entered(replace(entrant, module=counting)):
                self.task(0).generate(self.pipe, contender.steps)
            self.made[contender.setting] = counting.macs
        macs: int = self.made[contender.setting]
        return macs


@contextmanager
def timed(module: nn.Module, calls: int, device: torch.device) -> Iterator[list[float]]:
    """Note when the first of some calls of a module begins, and when the last one ends.

    The device is waited for at these two points only.
    """
    marks: list[float] = []
    numbers = iter(range(2 * calls))

    def mark(*_: Any) -> None:
        if next(numbers, None) in (0, 2 * calls - 1):
            synchronise(device)
            marks.append(time.perf_counter())

    with hooked(module.register_forward_pre_hook(mark), module.register_forward_hook(mark)):
        yield marks
