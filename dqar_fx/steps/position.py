"""Where a call of the denoiser stands: its run, its step, its stream."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dqar_fx.schedule.run import RunShape

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dqar_fx.capture.inputs import Roles
    from dqar_fx.schedule.table import BranchTable

    from .reasons import Reason
    from .runs import Run
    from .scheduler import SchedulerRun
    from .stream_key import StreamKey
    from .timesteps import Timesteps


@dataclass(frozen=True)
class NamedStream:
    """The stream and step that ``cache_context`` named.

    Attributes:
        name: Of the stream.
        step_index: The step, where it was given.
        num_steps: Steps of the run, where they were given.
    """

    name: str
    step_index: int | None = None
    num_steps: int | None = None


class Stretch:
    """A stretch of a stream whose kept outputs belong together.

    Attributes:
        program: What ran its latest call, and holds what was kept; a `Program`.
    """

    __slots__ = ("program",)

    def __init__(self) -> None:
        self.program: weakref.ref[Any] | None = None


@dataclass(slots=True)
class Position:
    """The step, stream and run of a call.

    Attributes:
        trajectory: An object of its own for every stretch of a stream whose kept outputs
            belong together.
        stream: Which stream it is.
        step: Index of the step in the run: the row of the branch table.
        length: Steps of the run, where known.
        timesteps: The timesteps of the run, where the call's timestep is the element ``step``
            of them; else None.
        scheduler_run: The run of the scheduler that told the step; None where none did.
        run: The log of the run; None where nothing is logged.
        reason: Why something may not be kept that the table reads; None where all is as usual.
        computes: Whether to compute everything and keep nothing, whatever the table says.
    """

    trajectory: object
    stream: StreamKey
    step: int
    length: int | None = None
    timesteps: Timesteps | None = None
    scheduler_run: SchedulerRun | None = None
    run: Run | None = None
    reason: Reason | None = None
    computes: bool = False

    def note(
        self,
        program: Any,
        actions: NDArray[np.int8],
        num_cold: int,
        whole: BranchTable | None = None,
    ) -> None:
        """Log what the call did, as `Run.note` has it."""
        if self.run is not None:
            where, why = (self.step, self.stream), self.reason
            self.run.note(where, why, program, actions, num_cold, whole, alone=self.computes)

    @property
    def shape(self) -> RunShape | None:
        """What the run says of itself; None where its number of steps is not known."""
        if self.scheduler_run is not None:
            return self.scheduler_run.shape
        return None if self.length is None else RunShape(self.length)


@dataclass(slots=True)
class Call:
    """What tells one call from others, as it comes in.

    Attributes:
        signature: Which program runs it: calls of other programs share no kept output.
        timestep: The timestep argument; None if the model has none.
        latents: The tensors that are denoised.
        conditioning: All other tensors.
        names: Per tensor of the conditioning, its argument.
        prompts: Per tensor of the conditioning, whether its name says that it is a prompt.
    """

    signature: Hashable
    timestep: Any
    latents: tuple[Any, ...]
    conditioning: tuple[Any, ...]
    names: tuple[str, ...] = ()
    prompts: tuple[bool, ...] = ()

    @classmethod
    def of(cls, roles: Roles, leaves: Sequence[Any], signature: Hashable) -> Call:
        """Read a call off its flat inputs."""
        return cls(
            signature,
            None if roles.timestep is None else leaves[roles.timestep],
            tuple([leaves[i] for i in roles.latents]),
            tuple([leaves[i] for i in roles.conditioning]),
            roles.names,
            roles.prompts,
        )
