"""The loop around a denoiser: where its calls stand in it, and whether that can be right."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import StepError
from dqar_fx.notices import Once, warn

from .steps import NamedStream, StepTracker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dqar_fx.capture.inputs import Roles

    from .steps import Position

MANY_RESTARTS = 3
"""Trajectories of a single call, in a row, after which something is probably wrong."""


class CallTracker:
    """Follows the calls of one denoiser, by what they and its user tell."""

    def __init__(self) -> None:
        self.tracker = StepTracker()
        self._once = Once()
        self._last: dict[tuple[str | None, int], Position] = {}
        self._restarts = 0

    def __getstate__(self) -> dict[str, Any]:
        """Let a copy follow calls of its own."""
        return {**self.__dict__, "tracker": StepTracker(), "_last": {}}

    @contextmanager
    def name_stream(self, name: str, step_index: int | None) -> Iterator[None]:
        """Name the stream and step of the calls inside, as `Denoiser.cache_context` does."""
        if step_index is not None and step_index < 0:
            raise StepError(f"step_index must not be negative, found {step_index}")
        outer = self.tracker.context
        self.tracker.context = NamedStream(name, step_index)
        try:
            yield
        finally:
            self.tracker.context = outer

    def attach_scheduler(self, scheduler: Any) -> None:
        """Take steps from a scheduler, as `Denoiser.attach_scheduler` does."""
        if scheduler is not None and not hasattr(scheduler, "step_index"):
            raise StepError(
                f"{type(scheduler).__name__} has no step_index, so it cannot tell the step. "
                "Leave it unattached: the timestep of each call is followed; or call inside "
                "denoiser.cache_context(name, step_index=...)"
            )
        self.tracker.scheduler = scheduler

    def attach_timesteps(self, timesteps: torch.Tensor | None) -> None:
        """Take timesteps as given, as `Denoiser.attach_timesteps` does."""
        if timesteps is not None and not (
            isinstance(timesteps, torch.Tensor) and timesteps.dim() == 1
        ):
            raise StepError(
                f"timesteps: expected a 1-D tensor with a value for each step, found "
                f"{timesteps!r}"
            )
        self.tracker.timestep_sources.attached = timesteps

    def lend(self, other: CallTracker) -> None:
        """Attach to another tracker what is attached to this one."""
        other.tracker.scheduler = self.tracker.scheduler
        other.tracker.timestep_sources.attached = self.tracker.timestep_sources.attached

    def reset(self) -> None:
        """Forget all trajectories: the next call starts a new one."""
        self.tracker.reset()
        self._last.clear()
        self._restarts = 0

    def locate(
        self, roles: Roles, leaves: Sequence[Any], *, wants_timesteps: bool, reads: bool
    ) -> Position:
        """Find the step of a call.

        Args:
            roles: Which input plays which part.
            leaves: The flat inputs of the call.
            wants_timesteps: Whether the timesteps of the whole trajectory are of use.
            reads: Whether to read a timestep on an accelerator for them, which waits for it.

        Raises:
            StepError: Nothing tells.
        """
        timestep = None if roles.timestep is None else leaves[roles.timestep]
        position = self.tracker.locate(
            timestep, leaves[roles.latent], [leaves[i] for i in roles.conditioning]
        )
        if wants_timesteps and position.timesteps is None and timestep is not None:
            timesteps = self.tracker.timestep_sources.find(
                timestep, position.step, reads=reads
            )
            position = replace(position, timesteps=timesteps)
        return position

    def restarts(self, position: Position) -> bool:
        """Note a call; whether it and those before it each began a trajectory."""
        last = self._last.get(position.stream)
        self._last[position.stream] = position
        if last is None or position.step > 0 or last.step > 0:
            self._restarts = 0
        elif last.trajectory is not position.trajectory:
            self._restarts += 1
        return self._restarts == MANY_RESTARTS

    def check_length(self, position: Position, num_steps: int) -> None:
        """Warn once of a trajectory that is shorter than the branch table.

        Raises:
            StepError: It is longer.
        """
        length = position.length or position.step + 1
        if position.length is not None and length < num_steps:
            self._once.warn(
                f"the trajectory has {length} steps but the branch table {num_steps}: only "
                "its first rows are used. Transform with a schedule of as many steps as the "
                "pipeline takes (num_inference_steps)",
                key="short",
            )
        if position.step >= num_steps or (position.step > 0 and length > num_steps + 1):
            raise StepError(
                f"the trajectory is longer than the branch table: step {position.step} of "
                f"{'at least ' if position.length is None else ''}{length} steps, but the "
                f"table has {num_steps}. Transform with a schedule of as many steps as "
                "the pipeline takes (num_inference_steps)"
            )


def warn_restarts() -> None:
    """Say that nothing is ever reused, since each call begins a trajectory."""
    warn(
        f"{MANY_RESTARTS + 1} calls in a row each began a new trajectory, so nothing "
        "is reused. Expected a timestep that falls from call to call, or one latent "
        "for all guidance branches of a step; where that is not so, use "
        "Denoiser.cache_context(name, step_index=...) or attach_scheduler(scheduler)"
    )
