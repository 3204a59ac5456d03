"""Steps of any rows, run as the denoiser runs them, with the time of each call of a region.

A rehearsal is a denoiser beside the one that is measured, over the same graphs, lowered
regions and parameters, so that what it compiles is compiled for both. Its program runs the
row that it is given instead of the branch table's, with a clock around each call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from dqar_fx.conditioning.memo import Memo
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.program.compile_options import CompileOptions
from dqar_fx.program.program import Program
from dqar_fx.program.stream import PreparedStep
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.steps.position import Position
from dqar_fx.steps.timesteps import Timesteps

from .clocks import CallClock, StepTimes
from .operation import Operand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dqar_fx.plan.plan import CallObserver
    from dqar_fx.plan.slot_state import ForecastWeights

    from .rows import Row

LATEST_TIMESTEP = 999
"""Timestep of a trajectory's first step."""
STREAM_NAME = "rehearsal"


@dataclass(frozen=True)
class TrajectoryInputs:
    """What is passed in a trajectory.

    Attributes:
        leaves: The flat inputs, made up; new latents are drawn like theirs.
        timesteps: ``[steps]``, as schedulers have them; None where no such tells the step.
    """

    leaves: list[Any]
    timesteps: torch.Tensor | None


class RowProgram(Program):
    """A program that runs ``next_row``, whatever its table says."""

    next_row: Row = ()

    @classmethod
    def like(cls, program: Program, observe: CallObserver) -> RowProgram:
        """Make one over a program's graphs and lowered regions, with slots for every site.

        Raises:
            OptionError: What is captured is blocks one by one.
        """
        program.require_whole("measuring a denoiser's own regions in its steps")
        computed = Schedule.compute_all(program.table.num_steps)
        made = cls(
            graphs=program.graphs,
            table=computed.resolve(program.table.sites, around=program.table.around),
            lowering=program.lowering,
            explanation=program.explanation,
            conditioning=program.ahead.way,
            observe=observe,
        )
        made.slot_specs = program.graphs.slots
        made.binder = replace(made.binder, specs=made.slot_specs)
        made.slot_owners = {key: key for key in made.slot_specs}
        return made

    def run(
        self, leaves: Sequence[Any], position: Position, weights: ForecastWeights | None = None
    ) -> list[torch.Tensor]:
        """Run the next row; the flat outputs of the denoiser.

        What its slots hold counts as kept, and a forecast reads all of its history.
        """
        assert weights is None, "a row is measured with weights of its own"
        row, stream = self.next_row, self._stream(position.stream)
        if not stream.slots.holds(position.trajectory):
            stream.slots.enter(position.trajectory)
        actions = np.array(row, np.int8)
        if row not in stream.rows:
            newest = (1.0, *[0.0] * (self.history - 1))
            stream.rows[row] = self.binder.bind_row(
                stream.slots, actions, (newest,) * len(row)
            )
        step = PreparedStep(
            actions=actions,
            calls=stream.rows[row],
            after=stream.slots.slot_state,
            needs=self.liveness.needs(row),
            num_cold=0,
            is_checked=self._is_checked(row, position.step),
        )
        return self._execute(stream, step, leaves, position)

    def evaluate_conditioning(self, leaves: Sequence[Any], position: Position) -> None:
        """Evaluate all that the table's first row reads, as for a prompt never seen before.

        What is found is not kept: this is to measure it.
        """
        needs = self.liveness.needs(self.table.row(0))
        values = self.plan.place_inputs(leaves)
        self._conditioning.evaluate(Memo(), leaves, values, position, needs)


@dataclass(frozen=True)
class RowProgramBuilder:
    """Gives a denoiser one program, whatever it is called with."""

    program: RowProgram

    def __call__(self, *_: Any, **__: Any) -> RowProgram:
        """Give the program."""
        return self.program

    def with_schedule(self, _schedule: Schedule, /) -> RowProgramBuilder:
        """Give the builder itself: rows are given, whatever the schedule."""
        return self


class Rehearsal:
    """Runs rows on a denoiser like another, captured already, and tells what they took."""

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self._clock, self._device = CallClock(device), device
        self._program = RowProgram.like(denoiser.program, self._clock.around)
        builder, residence = RowProgramBuilder(self._program), denoiser.residence
        residence.bring_back()  # to be shared with what is made here
        self._denoiser = Denoiser(denoiser.model, builder, CompileOptions.of(None), residence)
        if residence.place is not None:
            self._program.attach(residence)
        self._num_steps = self._program.table.num_steps
        self._denoiser.attach_timesteps(self._draw(self._num_steps).timesteps)

    @torch.no_grad()
    def run(self, rows: Sequence[Row]) -> list[StepTimes]:
        """Run steps of these rows, in as many trajectories of one prompt as they fill."""
        size = self._num_steps
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        return [step for part in parts for step in self._run_trajectory(part)]

    @torch.no_grad()
    def evaluate_conditioning(self, num_steps: int) -> StepTimes:
        """Evaluate all conditioning of a new prompt, for so many timesteps."""
        inputs = self._draw(num_steps)

        def run() -> None:
            drawn = inputs.timesteps
            timesteps = None if drawn is None else Timesteps.of(drawn)
            position = Position(object(), (STREAM_NAME, 0), 0, timesteps=timesteps)
            self._program.evaluate_conditioning(inputs.leaves, position)

        return self._clock.time(run)

    def _run_trajectory(self, rows: Sequence[Row]) -> Iterator[StepTimes]:
        inputs, roles = self._draw(self._num_steps), self._program.roles
        leaves = inputs.leaves
        for step, row in enumerate(rows):
            for i in roles.latents:
                leaves[i] = leaves[i].clone()
            if roles.timestep is not None and inputs.timesteps is not None:
                leaves[roles.timestep] = spread(inputs.timesteps[step], leaves[roles.timestep])
            args, kwargs = pytree.tree_unflatten(leaves, self._program.captured.in_spec)
            self._program.next_row = row
            index = None if inputs.timesteps is not None else step
            with self._denoiser.cache_context(STREAM_NAME, index):
                yield self._clock.time(lambda: self._denoiser(*args, **kwargs))  # noqa: B023  # at once

    def _draw(self, num_steps: int) -> TrajectoryInputs:
        """New inputs for a trajectory of so many timesteps."""
        placeholders = self._program.captured.gm.graph.find_nodes(op="placeholder")
        leaves = [
            Operand.of(value).allocate(self._device)
            if isinstance(value, torch.Tensor)
            else value
            for value in (node.meta.get("val") for node in placeholders)
        ]
        timestep = self._program.roles.timestep
        if timestep is None:
            return TrajectoryInputs(leaves, None)
        dtype = leaves[timestep].dtype
        latest = max(LATEST_TIMESTEP, num_steps)
        drawn = torch.linspace(latest, 0, num_steps, device=self._device).round().to(dtype)
        if len(set(drawn.tolist())) < num_steps:
            return TrajectoryInputs(leaves, None)
        leaves[timestep] = spread(drawn[0], leaves[timestep])
        return TrajectoryInputs(leaves, drawn)


def spread(timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give a timestep to each sample: a view of it if the captured one was such."""
    expanded = timestep.expand(like.shape)
    return expanded.clone() if any(like.stride()) else expanded
