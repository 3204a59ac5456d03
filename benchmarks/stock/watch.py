"""Which calls a stock pipeline makes: what each was given, and its step by the scheduler.

Nothing here knows the package. A call's row is the number that the scheduler itself gives to
the step that follows the call. Its stream is what its cache context and those arguments say
that do not change from step to step.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn


@dataclass(frozen=True)
class Argument:
    """What identifies an argument of a call.

    Attributes:
        whole: Of all of it.
        samples: Of each row of a tensor, or each item of a list; empty for other values.
    """

    whole: Hashable
    samples: tuple[Hashable, ...] = ()

    @classmethod
    def of(cls, value: object) -> Argument:
        """Looks at the values of tensors, at any depth."""
        if isinstance(value, torch.Tensor) and value.ndim:
            return cls(digest(value), tuple(map(digest, value)))
        if isinstance(value, list | tuple):
            items = tuple(map(digest, value))
            return cls(items, items)
        return cls(digest(value))


def digest(value: object) -> Hashable:
    """Equal for equal values: of tensors, of containers, and of what its repr tells."""
    if isinstance(value, torch.Tensor):
        own = value.detach().clone(memory_format=torch.contiguous_format)
        content = own.flatten().view(torch.uint8).numpy().tobytes()
        return (*value.shape, str(value.dtype), hashlib.blake2b(content).hexdigest())
    if isinstance(value, Mapping):
        return tuple((name, digest(inner)) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(digest, value))
    return repr(value)


@dataclass
class Call:
    """One call of a denoiser.

    Attributes:
        denoiser: Its name in the pipeline.
        context: Name of the cache context around it; None without one.
        arguments: By name; the first one is the latent.
        run: How often a scheduler was given timesteps before.
        step: How many calls or groups of calls, each followed by steps, came before.
        rows: Numbers of the steps that follow: of the scheduler, or of its copies for parts of
            the latent.
    """

    denoiser: str
    context: str | None
    arguments: dict[str, Argument]
    run: int
    step: int
    rows: set[int] = field(default_factory=set)

    @property
    def num_samples(self) -> int:
        """Samples of the latent."""
        return len(next(iter(self.arguments.values())).samples)


@dataclass(frozen=True)
class Visit:
    """Where a call belongs.

    Attributes:
        denoiser: Its name in the pipeline.
        row: Of the branch table; None in a run whose parts stand at different steps.
        samples: For each sample of the call, what tells its stream from all others.
    """

    denoiser: str
    row: int | None
    samples: tuple[Hashable, ...]


@dataclass
class Watch:
    """What a pipeline did in one request.

    Attributes:
        calls: In their order.
        num_rows: Steps for which the scheduler has timesteps.
        num_runs: How often a scheduler was given timesteps.
    """

    calls: list[Call] = field(default_factory=list)
    num_rows: int = 0
    num_runs: int = 0

    def begin_run(self, num_rows: int) -> None:
        """A scheduler was given timesteps for so many steps."""
        self.num_rows = num_rows
        self.num_runs += 1

    def add_call(self, name: str, context: str | None, arguments: dict[str, Argument]) -> None:
        """A denoiser is called: in the step of the call before, unless steps have followed."""
        step = self.calls[-1].step + bool(self.calls[-1].rows) if self.calls else 0
        self.calls.append(Call(name, context, arguments, self.num_runs, step))

    def add_step(self, row: int) -> None:
        """The scheduler's step of that number follows the latest calls."""
        for call in reversed(self.calls):
            if call.step != self.calls[-1].step:
                break
            call.rows.add(row)

    def visits(self) -> list[Visit]:
        """Where each call belongs.

        Raises:
            ValueError: A call was followed by no step of the scheduler.
        """
        if not all(call.rows for call in self.calls):
            raise ValueError("a call of the denoiser was followed by no step of the scheduler")
        uneven = {call.run for call in self.calls if len(call.rows) > 1}
        names = {call.denoiser for call in self.calls}
        static = {name: find_static(self.calls, name) for name in names}
        visits, seen = [], defaultdict[int, Counter[Hashable]](Counter)
        for call in self.calls:
            keys = list_samples(call, static[call.denoiser])
            before = seen[call.step]
            before.update(keys)
            # of equal ones in one step, also of one call, the first is the first of each step
            left = Counter(keys)
            samples = []
            for key in keys:
                samples.append((key, before[key] - left[key]))
                left[key] -= 1
            row = None if call.run in uneven else min(call.rows)
            visits.append(Visit(call.denoiser, row, tuple(samples)))
        return visits


def find_static(calls: Sequence[Call], denoiser: str) -> set[str]:
    """Arguments of a denoiser, the latent left out, that do not change from step to step.

    There are at most half as many values of those as there are steps: one per stream.
    """
    own = [call for call in calls if call.denoiser == denoiser]
    num_steps = len({call.step for call in own})
    values = defaultdict[str, set[Hashable]](set)
    for call in own:
        for name, argument in list(call.arguments.items())[1:]:
            values[name].add(argument.whole)
    return {name for name, found in values.items() if len(found) <= max(num_steps / 2, 1)}


def list_samples(call: Call, static: set[str]) -> list[Hashable]:
    """What identifies each sample of a call: what was given for it, and for the whole call."""
    given = {name: call.arguments[name] for name in call.arguments if name in static}
    for_each = [a for a in given.values() if len(a.samples) == call.num_samples]
    for_all = [(n, a.whole) for n, a in given.items() if len(a.samples) != call.num_samples]
    shared = (call.denoiser, call.run, call.context, *for_all)
    return [(*shared, *(a.samples[i] for a in for_each)) for i in range(call.num_samples)]


# ---- where a pipeline is looked at ---------------------------------------------------------


@contextmanager
def watched(pipe: DiffusionPipeline, denoisers: Sequence[str]) -> Iterator[Watch]:
    """Notes each call of a pipeline's denoisers and each step of its scheduler."""
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(counted_steps(pipe.scheduler, watch))
        for name in denoisers:
            stack.enter_context(noted_calls(getattr(pipe, name), name, watch))
        yield watch


@contextmanager
def noted_calls(model: nn.Module, name: str, watch: Watch) -> Iterator[None]:
    """Notes each call of a model, with its cache context, while inside."""
    signature, contexts = inspect.signature(model.forward), []

    def note(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind(*args, **kwargs).arguments
        arguments = {key: Argument.of(value) for key, value in given.items()}
        context = contexts[-1] if contexts else None
        watch.add_call(name, context, arguments)

    @contextmanager
    def named(context: str, *_: Any, **__: Any) -> Iterator[None]:
        contexts.append(context)
        yield
        contexts.pop()

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    model.cache_context = named  # beside that of its class
    try:
        yield
    finally:
        handle.remove()
        del model.cache_context


@contextmanager
def counted_steps(scheduler: Any, watch: Watch) -> Iterator[None]:
    """Counts a scheduler's steps, and those of its copies, while inside."""
    kind = type(scheduler)

    class Counted(kind):  # type: ignore[misc,valid-type]
        num_counted = 0

        @functools.wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.num_counted = 0
            watch.begin_run(len(self.timesteps))

        @functools.wraps(kind.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(kind.step).bind(self, *args, **kwargs).arguments
            row = self.find_row(given["timestep"])
            result = super().step(*args, **kwargs)
            self.num_counted += 1
            if getattr(self, "step_index", None) not in (None, row + 1):
                raise ValueError(f"step {row} was counted, and now is {self.step_index}")
            watch.add_step(row)
            return result

        def find_row(self, timestep: Any) -> int:
            """Steps since the first one; by the timestep where the scheduler counts none."""
            if self.num_counted == 0 or not hasattr(self, "step_index"):
                begin = getattr(self, "begin_index", None)
                places = (self.timesteps == torch.as_tensor(timestep)).nonzero()
                self.first = int(places[0]) if begin is None else begin
                self.num_counted = 0
            return self.first + self.num_counted

    scheduler.__class__ = Counted
    try:
        yield
    finally:
        scheduler.__class__ = kind
        vars(scheduler).pop("num_counted", None)
        vars(scheduler).pop("first", None)
