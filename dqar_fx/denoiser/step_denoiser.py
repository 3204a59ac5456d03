"""A module that stands where a model stood: it finds the step of each call, and runs it."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.inputs import refuse_gradients
from dqar_fx.errors import StepError
from dqar_fx.steps.call_tracker import CallTracker, warn_restarts

from .parameters import ParameterWrapper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from dqar_fx.capture.capture import Capture
    from dqar_fx.capture.inputs import Roles
    from dqar_fx.conditioning.conditioning import AheadPolicy
    from dqar_fx.conditioning.release import Residence
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.steps import Position


class StepProgram(Protocol):
    """What runs the steps of one input signature: a `Program`, or what observes its steps.

    Attributes:
        captured: The model as a graph.
        roles: Which input plays which part.
        table: What each site does at each step.
        ahead: When conditioning is evaluated for a whole trajectory.
    """

    captured: Capture
    roles: Roles
    table: BranchTable
    ahead: AheadPolicy

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """Run one step of one stream.

        Args:
            leaves: The denoiser's flat inputs.
            position: Which step of which stream this is.

        Returns:
            The denoiser's flat outputs.
        """

    def reset(self) -> None:
        """Forget all streams."""


class StepDenoiser(ParameterWrapper):
    """A module with the original's forward, each call of which is a step of a trajectory.

    A subclass says which program runs a call.
    """

    def __init__(self, model: nn.Module, residence: Residence | None = None) -> None:
        super().__init__(model, residence)
        self._call_tracker = CallTracker()

    if TYPE_CHECKING:

        def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> StepProgram:
            """The program for these inputs; built if there is none."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which follows calls of its own."""
        return {**super().__getstate__(), "_call_tracker": copy(self._call_tracker)}

    # ---- where the loop is ---------------------------------------------------------------

    def cache_context(
        self, name: str, step_index: int | None = None, **_: Any
    ) -> AbstractContextManager[None]:
        """Name the stream of the calls inside, and their step where it is known.

        Other keywords that diffusers pipelines give (``num_inference_steps``, ``timestep``,
        ``sigma``) are accepted; the branch table does not need them.
        """
        return self._call_tracker.name_stream(name, step_index)

    def attach_scheduler(self, scheduler: Any) -> Self:
        """Take the step from a diffusers scheduler's ``step_index``; None detaches.

        Raises:
            StepError: The scheduler does not count its steps.
        """
        self._call_tracker.attach_scheduler(scheduler)
        self.reset()
        return self

    def attach_timesteps(self, timesteps: torch.Tensor | None) -> Self:
        """Say which timesteps trajectories will have, so that conditioning is evaluated ahead.

        Needed only where the call's timestep is neither an element of a 1-D tensor nor, as it
        is or divided by ``num_train_timesteps``, one of an attached scheduler's. Which step a
        call is does not follow from them, and a call whose timestep has another value than
        theirs at its step is evaluated by itself.

        Args:
            timesteps: One value per step, 1-D, as the calls will have them; None detaches.

        Raises:
            StepError: They are no 1-D tensor.
        """
        self._call_tracker.attach_timesteps(timesteps)
        self.reset()
        return self

    def reset(self) -> None:
        """Start anew: the next call begins a trajectory."""
        self._call_tracker.reset()

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Reset, under the name that diffusers calls at the end of a pipeline."""
        del recurse
        self.reset()

    # ---- a call --------------------------------------------------------------------------

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, as_tuple = self._bind_call(args, kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        refuse_gradients(leaves)
        with torch.inference_mode(mode=False), torch.no_grad():
            program, outputs = self._run(leaves, spec)
        result = pytree.tree_unflatten(outputs, program.captured.out_spec)
        return result.to_tuple() if as_tuple else result

    def _run(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> tuple[StepProgram, list[torch.Tensor]]:
        """One call: the program for its inputs, and the flat outputs."""
        program = self._find_program(leaves, spec)
        return program, program.run(leaves, self._locate(program, leaves))

    def _locate(self, program: StepProgram, leaves: Sequence[Any]) -> Position:
        """Find the step of this call.

        Raises:
            StepError: It is unknown, or the table has no such step.
        """
        ahead = program.ahead
        position = self._call_tracker.locate(
            program.roles, leaves, wants_timesteps=ahead.is_wanted, reads=ahead.is_asked
        )
        if self._call_tracker.restarts(position) and self._reuses(program.table):
            warn_restarts()
        try:
            self._call_tracker.check_length(position, program.table.num_steps)
        except StepError:
            self.reset()
            raise
        return position

    def _reuses(self, table: BranchTable) -> bool:
        """Whether a table ever reuses anything."""
        return table.reuse_ratio > 0
