"""Which step of which trajectory a call is, and which stream: known on the host.

In this order: ``cache_context(name, step_index=...)`` where the pipeline gives it; the
``step_index`` of an attached scheduler; else the timestep that the call carries. A timestep
that is an element of a descending 1-D tensor, as in ``for t in scheduler.timesteps``, tells
its index by its place in that tensor, which is read once per trajectory. Any other timestep
is read itself: a lower one is the next step, the same one with the same latent is the next
stream of that step, anything else starts a new trajectory.

Streams without a name are told apart by their conditioning. A call whose conditioning no
stream had at the step before starts its stream anew: what was kept may be another run's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import StepError

from .timesteps import Timesteps, TimestepSources, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class NamedStream:
    """The stream and step that ``cache_context`` named."""

    name: str
    step_index: int | None = None


@dataclass(frozen=True)
class Position:
    """The step, stream and trajectory of a call.

    Attributes:
        trajectory: An object of its own for every trajectory of a stream.
        stream: Name given by ``cache_context`` (or None), and number of the call in its step.
        step: Index of the step in the trajectory.
        length: Steps of the trajectory, where known.
        timesteps: The timesteps of the trajectory, where the call's timestep is the element
            ``step`` of them; else None.
    """

    trajectory: object
    stream: tuple[str | None, int]
    step: int
    length: int | None = None
    timesteps: Timesteps | None = None


@dataclass(frozen=True)
class Clock:
    """What tells the time of one call: an index, or a timestep that only compares."""

    index: int | None
    value: float
    timesteps: Timesteps | None = None
    length: int | None = None


@dataclass
class SeenTensor:
    """A tensor as it was at some call: the same object, not written to since."""

    tensor: torch.Tensor
    version: int | None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> SeenTensor:
        """Remember a tensor, and keep it alive so that its identity stays its own."""
        return cls(tensor, version_of(tensor))

    def is_same(self, tensor: torch.Tensor) -> bool:
        """Whether this is that tensor, or the same view of its storage, unchanged."""
        if self.version is None or version_of(tensor) != self.version:
            return False
        return self.tensor is tensor or shows_same_memory(self.tensor, tensor)

    def still_equals(self, tensor: torch.Tensor) -> bool:
        """Whether the remembered tensor was not written to and has this one's values."""
        is_known = self.version is not None and version_of(self.tensor) == self.version
        return is_known and self.is_equal(tensor)

    def is_object(self, tensor: torch.Tensor) -> bool:
        """Whether this is that tensor, as far as is known: inference mode counts no writes."""
        return self.is_same(tensor) or (self.version is None and self.tensor is tensor)

    def is_equal(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor has the remembered one's values."""
        kinds = [(each.shape, each.dtype, each.device) for each in (self.tensor, tensor)]
        return kinds[0] == kinds[1] and torch.equal(self.tensor, tensor)


@dataclass
class Trajectory:
    """One run of the denoising loop, as far as it has come."""

    clock: Clock
    step: int
    latent: SeenTensor
    streams: list[Branch] = field(default_factory=list)
    called: set[int] = field(default_factory=set)


@dataclass
class Branch:
    """One stream of a trajectory: its conditioning, and an object of its own."""

    seen: list[SeenTensor]
    token: object = field(default_factory=object)


class StepTracker:
    """Follows the calls of one denoiser."""

    def __init__(self) -> None:
        self.context: NamedStream | None = None
        self.timestep_sources = TimestepSources()
        self._trajectories: dict[str | None, Trajectory] = {}

    @property
    def scheduler(self) -> Any:
        """The attached scheduler, or None."""
        return self.timestep_sources.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.timestep_sources.scheduler = scheduler

    def reset(self) -> None:
        """Forget all trajectories: the next call starts a new one."""
        self._trajectories.clear()
        self.timestep_sources.forget()

    def locate(
        self,
        timestep: object,
        latent: torch.Tensor,
        conditioning: Sequence[torch.Tensor],
    ) -> Position:
        """Find the position of a call.

        Args:
            timestep: The timestep argument, a tensor of one value or one per sample; None if
                the model has none.
            latent: The tensor that is denoised.
            conditioning: The other tensors of the call, which tell streams apart.

        Raises:
            StepError: Nothing tells which step this is.
        """
        name = self.context.name if self.context else None
        clock = self._read_clock(timestep)
        current = self._trajectories.get(name)
        move = None if current is None else relation(current, clock, latent)
        if current is None or move is None:
            current = Trajectory(clock, clock.index or 0, SeenTensor.of(latent))
            self._trajectories[name] = current
        elif move == 1:
            current.step += 1
            current.clock, current.latent, current.called = clock, SeenTensor.of(latent), set()
        stream = choose_stream(current, conditioning, is_named=name is not None)
        timesteps = clock.timesteps if clock.index == current.step else None
        return Position(
            trajectory=current.streams[stream].token,
            stream=(name, stream),
            step=current.step,
            length=clock.length,
            timesteps=timesteps,
        )

    def _read_clock(self, timestep: object) -> Clock:
        if self.context is not None and self.context.step_index is not None:
            return Clock(int(self.context.step_index), 0.0, length=self._scheduled_steps())
        if hasattr(self.scheduler, "step_index"):
            index = self.scheduler.step_index
            if index is None:
                index = getattr(self.scheduler, "begin_index", None) or 0
            return Clock(int(index), 0.0, length=self._scheduled_steps())
        if not isinstance(timestep, torch.Tensor):
            raise StepError(
                f"no step is known for this call: its timestep is {timestep!r}, expected a "
                "tensor. Pass the timestep as a tensor, call inside "
                "denoiser.cache_context(name, step_index=...), or attach_scheduler(scheduler)"
            )
        return self._read_timesteps(timestep) or Clock(None, float(timestep.max()))

    def _scheduled_steps(self) -> int | None:
        timesteps = getattr(self.scheduler, "timesteps", None)
        return None if timesteps is None else len(timesteps)

    def _read_timesteps(self, timestep: torch.Tensor) -> Clock | None:
        """The clock of a timestep that is an element of a descending 1-D tensor."""
        found = self.timestep_sources.read_base(timestep)
        if found is None:
            return None
        timesteps, index = found
        values = timesteps.values
        if values[0] <= values[-1]:
            return None
        return Clock(index, values[index], timesteps, len(values))


def relation(trajectory: Trajectory, clock: Clock, latent: torch.Tensor) -> int | None:
    """Steps from a trajectory's last call to this one: 0, 1, or None for a new trajectory."""
    before = trajectory.clock
    if before.timesteps is not clock.timesteps or (before.index is None) != (
        clock.index is None
    ):
        return None
    if clock.index is not None and before.index is not None:
        moved = clock.index - before.index
        if clock.timesteps is not None and moved > 1:
            moved = 1  # a loop over a slice of the schedule
    else:
        moved = 0 if clock.value == before.value else 1 if clock.value < before.value else -1
    if moved == 0:
        return 0 if trajectory.latent.is_object(latent) else None
    return 1 if moved == 1 else None


def choose_stream(
    trajectory: Trajectory, conditioning: Sequence[torch.Tensor], *, is_named: bool
) -> int:
    """The stream of a call: the one with its conditioning, else the next one, started anew.

    A name tells the stream by itself: its conditioning may change from step to step.
    """
    waiting = [i for i in range(len(trajectory.streams)) if i not in trajectory.called]
    matched = match_stream(trajectory, waiting, conditioning)
    stream = matched if matched is not None else next(iter(waiting), len(trajectory.streams))
    branch = Branch([SeenTensor.of(tensor) for tensor in conditioning])
    if matched is not None or (is_named and waiting):
        branch.token = trajectory.streams[stream].token
    trajectory.streams[stream : stream + 1] = [branch]
    trajectory.called.add(stream)
    return stream


def match_stream(
    trajectory: Trajectory, waiting: Sequence[int], conditioning: Sequence[torch.Tensor]
) -> int | None:
    """The waiting stream that had this conditioning before: the same tensors, else equal ones.

    Values are compared only where no stream has these very tensors.
    """
    for compare in (SeenTensor.is_same, SeenTensor.is_equal):
        for i in waiting:
            if agree(trajectory.streams[i].seen, conditioning, compare):
                return i
    return None


def agree(
    seen: Sequence[SeenTensor],
    tensors: Sequence[torch.Tensor],
    compare: Callable[[SeenTensor, torch.Tensor], bool],
) -> bool:
    """Whether each remembered tensor agrees with its counterpart."""
    return len(seen) == len(tensors) and all(map(compare, seen, tensors))


def shows_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same view of one storage."""
    views = [(t.shape, t.stride(), t.storage_offset(), t.dtype) for t in (a, b)]
    return views[0] == views[1] and a.untyped_storage()._cdata == b.untyped_storage()._cdata
