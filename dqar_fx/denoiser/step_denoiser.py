"""A module that stands where a model stood: it finds the step of each call, and runs it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.compiled import opaque
from dqar_fx.capture.inputs import refuse_gradients
from dqar_fx.errors import StepError
from dqar_fx.steps.position import Call
from dqar_fx.steps.session import LengthCheck
from dqar_fx.steps.sessions import Sessions

from .parameters import ParameterWrapper
from .request import RequestSession

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from dqar_fx.capture.capture import Capture
    from dqar_fx.capture.inputs import Roles
    from dqar_fx.conditioning.conditioning import AheadPolicy
    from dqar_fx.conditioning.release import Residence
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position
    from dqar_fx.steps.runs import Run


class StepProgram(Protocol):
    """What runs the steps of one input signature: a `Program`, or what observes its steps.

    Attributes:
        roles: Which input plays which part.
        table: What each site does at each step.
        ahead: When conditioning is evaluated for a whole trajectory.
    """

    roles: Roles
    table: BranchTable
    ahead: AheadPolicy

    @property
    def captured(self) -> Capture:
        """The model as a graph."""

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


Found = TypeVar("Found", bound=StepProgram)


class StepDenoiser(ParameterWrapper):
    """A module with the original's forward, each call of which is a step of a trajectory.

    A subclass says which program runs a call.

    Attributes:
        times_calls: Whether the log of a run has the time of each call. An accelerator is
            waited for then, before and after each, which makes a run slower.
    """

    times_calls = False

    def __init__(self, model: nn.Module, residence: Residence | None = None) -> None:
        super().__init__(model, residence)
        self._sessions = Sessions()
        self._lengths = LengthCheck()

    if TYPE_CHECKING:

        def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> StepProgram:
            """The program for these inputs; built if there is none."""

        def _forget_session(self, number: int | None) -> None:
            """Forget the streams of a session; None for what has none."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which follows calls of its own."""
        return {**super().__getstate__(), "_lengths": LengthCheck()}

    # ---- where the loop is ---------------------------------------------------------------

    def cache_context(
        self,
        name: str,
        step_index: int | None = None,
        num_inference_steps: int | None = None,
        **_: Any,
    ) -> AbstractContextManager[None]:
        """Name the stream of the calls inside, and their step where it is known.

        Args:
            name: Of the stream.
            step_index: The row of the branch table.
            num_inference_steps: How many rows the run has.
            **_: Other keywords that diffusers pipelines give (``timestep``, ``sigma``) are
                accepted; the branch table does not need them.

        Raises:
            StepError: When it is entered: a number is no whole one, or too small.
        """
        return self._sessions.name_stream(name, step_index, num_inference_steps)

    def attach_scheduler(self, scheduler: Any) -> Self:
        """Take the step from a diffusers scheduler; None detaches.

        Needed only where no diffusers pipeline calls: of one that does, the scheduler is
        known.

        Raises:
            StepError: It is no scheduler that counts its steps.
        """
        if scheduler is not None and not hasattr(scheduler, "step_index"):
            raise StepError(
                f"{type(scheduler).__name__} has no step_index, so it cannot tell the step. "
                "Leave it unattached: the timestep of each call is followed; or call inside "
                "denoiser.cache_context(name, step_index=...)"
            )
        self._sessions.scheduler = scheduler
        self.reset()
        return self

    def follow_scheduler(self, scheduler: Any) -> None:
        """Take the step from a scheduler while it is in a run that no pipeline is known for.

        Args:
            scheduler: One that is watched; None for none.
        """
        self._sessions.watched = scheduler

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
        if timesteps is not None and not (
            isinstance(timesteps, torch.Tensor) and timesteps.dim() == 1
        ):
            raise StepError(
                f"timesteps: expected a 1-D tensor with a value for each step, found "
                f"{timesteps!r}"
            )
        self._sessions.attach_timesteps(timesteps)
        self.reset()
        return self

    def session(self) -> RequestSession:
        """A session: slots, clock and log of one request among several at a time.

        Those that were dropped without an end, such as with a generator, are closed first.

        Raises:
            StepError: Too many are open.
        """
        for session in self._sessions.take_dropped():
            self._sessions.close(session)
            self._forget_session(session.number)
        return RequestSession(self._sessions, self._forget_session)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The logs of the latest runs of the session that is open; the last may go on."""
        return tuple(self._sessions.current.runs)

    def reset(self) -> None:
        """Start anew: the next call begins a trajectory."""
        self._sessions.reset()

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """End the run of this session, as diffusers asks for at the end of a pipeline."""
        del recurse
        self._end_run()

    def _end_run(self) -> None:
        """Forget what this session has kept, and how far its run has come; no other's."""
        session = self._sessions.current
        if session is self._sessions.default and self._sessions.is_only_default:
            self.reset()
        else:
            self._forget_session(session.number)
            self._sessions.reset_current()

    # ---- a call --------------------------------------------------------------------------

    @opaque  # its own lowering compiles what it runs
    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._turns:  # scales are the graph's, which threads and denoisers may share
            return self._call(*self._bind_call(args, kwargs))

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], as_tuple: bool) -> Any:
        """One call with its arguments in order."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        refuse_gradients(leaves)
        with torch.inference_mode(mode=False), torch.no_grad():
            if self.times_calls:
                program, outputs = self._run_timed(leaves, spec)
            else:
                program, outputs = self._run(leaves, spec)
        spec = program.captured.out_spec
        if as_tuple:  # without the object, whose class may be deprecated
            return unflatten_fields(outputs, spec)
        return pytree.tree_unflatten(outputs, spec)

    def _run_timed(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> tuple[StepProgram, list[torch.Tensor]]:
        """One call, whose time is logged; an accelerator is waited for before and after."""
        synchronise(self.device)
        start = perf_counter()
        found = self._run(leaves, spec)
        synchronise(self.device)
        self._sessions.current.note_time(1e3 * (perf_counter() - start))
        return found

    def _run(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> tuple[StepProgram, list[torch.Tensor]]:
        """One call: the program for its inputs, and the flat outputs."""
        find = partial(self._find_program, leaves, spec)
        program = find()
        position = self._locate(program, leaves)
        program = self._renew(program, position, find)
        program = self._fit(program, position)
        return program, program.run(leaves, position)

    def _locate(self, program: StepProgram, leaves: Sequence[Any]) -> Position:
        """Find the step of this call.

        Raises:
            StepError: It is unknown, or another thread is inside of a run.
        """
        sessions, ahead = self._sessions, program.ahead
        call = Call.of(program.roles, leaves, program.captured.key)
        find_scheduler = partial(sessions.find_scheduler, self)
        position = sessions.locate(call, find_scheduler, program.table.num_steps)
        if ahead.is_wanted and position.timesteps is None and call.timestep is not None:
            sources = sessions.current.tracker.timestep_sources
            timesteps = sources.find(call.timestep, position.step, reads=ahead.is_asked)
            position = replace(position, timesteps=timesteps)
        return position

    def _renew(self, program: Found, position: Position, find: Callable[[], Found]) -> Found:
        """The program of a call, for weights that were written to before its run began.

        Args:
            program: The one that was found.
            position: Which step of which stream the call is.
            find: Finds it again.

        Raises:
            DqarError: They were, but some are away.
        """
        run = position.run
        begins = run is not None and not run.calls
        return find() if begins and self._notice_writes() else program

    def _fit(self, program: StepProgram, position: Position) -> StepProgram:
        """The program whose table is made for the run of a call.

        Raises:
            StepError: The table has no such step, or the number of steps is not known.
        """
        table = program.table
        run = position.run
        if run is not None and not run.calls and self._reuses(table):
            self._sessions.current.check_restarts(table.num_steps)
        try:
            self._lengths.check(position, table.num_steps)
        except StepError:
            self._end_run()
            raise
        return program

    def _reuses(self, table: BranchTable) -> bool:
        """Whether a table ever reuses anything."""
        return table.reuse_ratio > 0


def synchronise(device: torch.device) -> None:
    """Wait for what an accelerator has been given to do."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def unflatten_fields(outputs: Sequence[Any], spec: pytree.TreeSpec) -> tuple[Any, ...]:
    """The fields of an output object as a tuple, as its ``to_tuple`` gives them."""
    leaves, fields = iter(outputs), spec.children()
    return tuple(
        pytree.tree_unflatten([next(leaves) for _ in range(field.num_leaves)], field)
        for field in fields
    )
