"""The timesteps of a whole trajectory, where they are known ahead.

From the call itself, if its timestep is an element of a 1-D tensor, as in ``for t in
scheduler.timesteps``; from timesteps that were attached; or from an attached scheduler, as
they are or divided by its ``num_train_timesteps``, as Flux and SD3 pass them. What is attached
counts for a call only if its timestep has the value that stands at that step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.passes.support.equal_tensors import version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Range = tuple[float, float]
"""The greatest and the least of a call's timesteps. In this order they compare as the
timesteps of those samples that go on: what stands still is a given frame at 0, or waits at
the first one."""


@dataclass(frozen=True, eq=False)
class Timesteps:
    """The timesteps of a trajectory, read once.

    Attributes:
        tensor: The timesteps.
        version: How often it had been written to.
        values: Its values.
    """

    tensor: torch.Tensor
    version: int | None
    values: list[float]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Timesteps:
        """Read a 1-D tensor."""
        return cls(tensor, version_of(tensor), tensor.tolist())

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether this is that tensor, unchanged.

        Inference mode counts no writes; where reading does not wait, values are compared.
        """
        if self.tensor is not tensor or self.version != version_of(tensor):
            return False
        is_counted = self.version is not None or tensor.device.type != "cpu"
        return is_counted or tensor.tolist() == self.values

    @cached_property
    def is_monotonic(self) -> bool:
        """Whether they fall or rise, as a loop goes through them; neighbours may be equal."""
        pairs = list(pairwise(self.values))
        falls, rises = all(a >= b for a, b in pairs), all(a <= b for a, b in pairs)
        return falls != rises

    def is_equal(self, other: Timesteps) -> bool:
        """Whether both have the same values."""
        return self is other or self.values == other.values


class TimestepSources:
    """Finds the timesteps of the trajectory that a call belongs to.

    Attributes:
        attached: Timesteps that were given, or None.
        scheduler: The one whose run it is, or None.
    """

    def __init__(self) -> None:
        self.attached: torch.Tensor | None = None
        self.scheduler: Any = None
        self._base: Timesteps | None = None
        self._given: tuple[Timesteps, torch.dtype, list[Timesteps]] | None = None

    def forget(self) -> None:
        """Forget what was read, so that it is read anew."""
        self._base = self._given = None

    def read_base(self, timestep: torch.Tensor) -> tuple[Timesteps, int] | None:
        """The timesteps that a timestep is an element of, and its place there.

        They rise or fall: a slice of a batch of equal or of any timesteps is no place in time.
        """
        base = base_of(timestep)
        if base is None or base.numel() < 2:
            return None
        if self._base is None or not self._base.is_of(base):
            self._base = Timesteps.of(base)
        return (self._base, place_in(base, timestep)) if self._base.is_monotonic else None

    def find(self, timestep: torch.Tensor, step: int, *, reads: bool) -> Timesteps | None:
        """The timesteps that have a call's at its step; ``reads`` waits for an accelerator."""
        found = self.read_base(timestep)
        if found is not None and found[1] == step:
            return found[0]
        given = self.scheduler_timesteps if self.attached is None else self.attached
        if given is None or not (reads or timestep.device.type == "cpu"):
            return None
        value = value_of(timestep)
        if value is None:
            return None
        known = self._known(given, timestep)
        return next(
            (r for r in known if step < len(r.values) and r.values[step] == value), None
        )

    @property
    def scheduler_timesteps(self) -> torch.Tensor | None:
        """The timesteps of the attached scheduler, or None."""
        found = getattr(self.scheduler, "timesteps", None)
        return found if isinstance(found, torch.Tensor) and found.dim() == 1 else None

    def _known(self, given: torch.Tensor, timestep: torch.Tensor) -> list[Timesteps]:
        """Timesteps as a pipeline may pass them, in the dtype of the call's."""
        known = self._given
        if known is None or not known[0].is_of(given) or known[1] != timestep.dtype:
            scheduler = self.scheduler if self.attached is None else None
            read = [Timesteps.of(each) for each in spell(given, timestep, scheduler)]
            self._given = known = (Timesteps.of(given), timestep.dtype, read)
        return known[2]


def spell(
    timesteps: torch.Tensor, like: torch.Tensor, scheduler: Any = None
) -> Iterator[torch.Tensor]:
    """Timesteps as pipelines pass them on, in the dtype and on the device of one.

    As they are; divided by the scheduler's ``num_train_timesteps`` (Flux, SD3); or counted
    from the other end (Z-Image, Lumina). In a narrow dtype it counts what was rounded when.
    """
    own = timesteps.to(like.device, like.dtype)
    yield own
    total = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    if total and own.is_floating_point():
        yield own / total
        yield (timesteps / total).to(like.device, like.dtype)
        yield 1 - own / total
        yield (total - own) / total
        yield (1 - timesteps / total).to(like.device, like.dtype)


def find_value(timestep: Any, timesteps: torch.Tensor, scheduler: Any) -> int | None:
    """The first place where a scheduler's timesteps have a call's value; else None."""
    return next(find_places(timestep, timesteps, scheduler), None)


def find_start(timestep: Any, timesteps: torch.Tensor, scheduler: Any) -> int | None:
    """The same for the first call of a run.

    A thousandth of the first timestep may be the last one: of all spellings the earliest place
    counts.
    """
    return min(find_places(timestep, timesteps, scheduler), default=None)


def find_places(timestep: Any, timesteps: torch.Tensor, scheduler: Any) -> Iterator[int]:
    """Where a scheduler's timesteps have a call's value, as far as that can be said.

    An element of them tells its place. Any other timestep is read, which waits for an
    accelerator: then it is the first place in each spelling of the timesteps that has it.
    """
    if not isinstance(timestep, torch.Tensor):
        return
    root = timesteps if timesteps._base is None else timesteps._base
    if base_of(timestep) is root:
        yield place_in(timesteps, timestep)
        return
    value = value_of(timestep)
    if value is None:
        return
    for spelled in spell(timesteps, timestep, scheduler):
        found = (spelled == value).nonzero()
        if len(found):
            yield int(found[0])


def base_of(timestep: torch.Tensor) -> torch.Tensor | None:
    """The 1-D tensor that a timestep is an element of; None if it is of none."""
    base = timestep._base
    if base is None or base.dim() != 1 or base.dtype != timestep.dtype:
        return None
    return base if is_single(timestep) else None


def place_in(timesteps: torch.Tensor, element: torch.Tensor) -> int:
    """The place of an element of 1-D timesteps, or of what they are a view of."""
    offset = element.storage_offset() - timesteps.storage_offset()
    return int(offset // timesteps.stride(0))


def is_single(timestep: torch.Tensor) -> bool:
    """Whether a timestep is one value by its layout: of one element, or expanded from it."""
    return timestep.numel() == 1 or not any(timestep.stride())


def range_of(timestep: torch.Tensor) -> Range:
    """The greatest and the least value, which are one where all samples have the same."""
    if is_single(timestep):
        value = float(timestep.flatten()[0])
        return value, value
    low, high = torch.stack(torch.aminmax(timestep)).tolist()
    return float(high), float(low)


def value_of(timestep: torch.Tensor) -> float | None:
    """The value that all samples have; None where they have several."""
    low, high = range_of(timestep)
    return low if low == high else None
