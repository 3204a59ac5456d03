"""The timesteps of a whole trajectory, where they are known ahead.

From the call itself, if its timestep is an element of a 1-D tensor, as in ``for t in
scheduler.timesteps``; from timesteps that were attached; or from an attached scheduler, as
they are or divided by its ``num_train_timesteps``, as Flux and SD3 pass them. What is attached
counts for a call only if its timestep has the value that stands at that step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


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

    def is_equal(self, other: Timesteps) -> bool:
        """Whether both have the same values."""
        return self is other or self.values == other.values


class TimestepSources:
    """Finds the timesteps of the trajectory that a call belongs to.

    Attributes:
        attached: Timesteps that were given, or None.
        scheduler: One that was attached, or None.
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
        """The timesteps that a timestep is an element of, and its place there."""
        base = timestep._base
        single = timestep.numel() == 1 or not any(timestep.stride())
        if base is None or base.dim() != 1 or base.numel() < 2 or not single:
            return None
        if base.dtype != timestep.dtype:
            return None
        if self._base is None or not self._base.is_of(base):
            self._base = Timesteps.of(base)
        index = (timestep.storage_offset() - base.storage_offset()) // base.stride(0)
        return self._base, index

    def find(self, timestep: torch.Tensor, step: int, *, reads: bool) -> Timesteps | None:
        """The timesteps that have a call's at its step; ``reads`` waits for an accelerator."""
        found = self.read_base(timestep)
        if found is not None and found[1] == step:
            return found[0]
        given = self.scheduler_timesteps if self.attached is None else self.attached
        if given is None or not (reads or timestep.device.type == "cpu"):
            return None
        low, high = torch.stack(torch.aminmax(timestep)).tolist()
        if low != high:
            return None
        known = self._known(given, timestep)
        return next((r for r in known if step < len(r.values) and r.values[step] == low), None)

    @property
    def scheduler_timesteps(self) -> torch.Tensor | None:
        """The timesteps of the attached scheduler, or None."""
        found = getattr(self.scheduler, "timesteps", None)
        return found if isinstance(found, torch.Tensor) and found.dim() == 1 else None

    def _known(self, given: torch.Tensor, timestep: torch.Tensor) -> list[Timesteps]:
        """Timesteps as a pipeline may pass them, in the dtype of the call's."""
        known = self._given
        if known is None or not known[0].is_of(given) or known[1] != timestep.dtype:
            timestep_sources = [
                Timesteps.of(each) for each in self._spellings(given, timestep)
            ]
            self._given = known = (Timesteps.of(given), timestep.dtype, timestep_sources)
        return known[2]

    def _spellings(
        self, given: torch.Tensor, timestep: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        own = given.to(timestep.device, timestep.dtype)
        yield own
        config = getattr(self.scheduler, "config", None)
        total = getattr(config, "num_train_timesteps", None)
        if self.attached is None and total and own.is_floating_point():
            yield own / total


def version_of(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written in place; None where that is not recorded."""
    return None if tensor.is_inference() else tensor._version
