"""Steps of any rows, run as the denoiser runs them, with the time of each call of a region.

A rehearsal is a denoiser like the one that is measured: same graphs, lowered regions and
parameters, so that what it compiles is compiled for both. Only which row a step runs is said
by the rehearsal instead of by a branch table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.inputs import signature_of
from dqar_fx.conditioning.memo import Memo
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.plan.slots import slots_of
from dqar_fx.program.program import PreparedStep, Program
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.steps.steps import Position
from dqar_fx.steps.timesteps import Timesteps

from .clocks import StepTimes, TimedLowering
from .operation import Operand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dqar_fx.plan.slot_state import ForecastWeights
    from dqar_fx.plan.slots import Slots
    from dqar_fx.program.lowering import Lowering
    from dqar_fx.program.program import Stream

    Row = tuple[Action, ...]

LATEST = 999
"""Timestep of a trajectory's first step."""
NAME = "rehearsal"
"""Of its stream."""


@dataclass(frozen=True)
class Inputs:
    """What is passed in a trajectory.

    Attributes:
        leaves: The flat inputs, made up; new latents are drawn like theirs.
        timesteps: Of each step, as schedulers have them; None where no such tells the step.
    """

    leaves: list[Any]
    timesteps: torch.Tensor | None


class RowProgram(Program):
    """A program that runs the rows that it is told.

    Attributes:
        next_row: What the next step runs.
    """

    next_row: Row = ()

    @classmethod
    def like(cls, program: Program, lowering: Lowering) -> RowProgram:
        """Over the same graphs, with slots for every site."""
        computed = Schedule.compute_all(program.table.num_steps)
        made = cls(
            captured=program.captured,
            guarded=program.guarded,
            table=computed.resolve(program.table.sites, around=program.table.around),
            plan=program.plan,
            lowering=lowering,
            explanation=program.explanation,
            conditioning=program.ahead.way,
        )
        made.slot_specs = slots_of(program.guarded)
        made.slot_owners = {key: key for key in made.slot_specs}
        return made

    def _begin(self, slots: Slots, trajectory: object) -> None:
        """As any program, but for what is done once per trajectory: rows are timed."""
        slots.enter(trajectory)

    def _prepare(
        self, stream: Stream, step: int, weights: ForecastWeights | None = None
    ) -> PreparedStep:
        """The step of the row, whatever is kept."""
        del weights
        row, slot_state = self.next_row, stream.slots.slot_state
        if row not in stream.rows:
            latest = (1.0, *[0.0] * (self.history - 1))  # a forecast reads all of them
            weights = (latest,) * len(row)
            stream.rows[row] = self._bind_row(stream, np.array(row, np.int8), weights)
        is_last = step == self.table.num_steps - 1
        is_checked = is_last or (self._is_on_host and Action.STORE in row)
        return PreparedStep(
            calls=stream.rows[row],
            after=slot_state,
            needs=self.liveness.needs(row),
            num_cold=0,
            is_checked=is_checked,
        )

    def evaluate_conditioning(self, inputs: Inputs) -> None:
        """All conditioning of a prompt that was never seen, at a trajectory's first step."""
        values: list[Any] = [None] * self.plan.size
        for number, leaf in zip(self.plan.inputs, inputs.leaves, strict=True):
            values[number] = leaf
        timesteps = None if inputs.timesteps is None else Timesteps.of(inputs.timesteps)
        position = Position(object(), (NAME, 0), 0, timesteps=timesteps)
        needs = self.liveness.needs(self.table.row(0))  # which computes: it reads everything
        self._conditioning.evaluate(Memo(), inputs.leaves, values, position, needs)


class Rehearsal(Denoiser):
    """A denoiser that runs rows as it is told, and tells what they took.

    Args:
        denoiser: The one to be like; captured already.
        device: Where it runs.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        builder, options = denoiser._programs.builder, denoiser._programs.options
        super().__init__(denoiser.model, builder, options, denoiser.residence)
        self._clocks = TimedLowering(denoiser.program.lowering, device)
        self._rows = RowProgram.like(denoiser.program, self._clocks)
        if denoiser.residence.place is not None:
            self._rows.attach(denoiser.residence)
        self._on = device

    def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        signature_of(leaves, spec)  # takes what a look-up takes
        return self._rows

    @torch.no_grad()
    def run(self, rows: Sequence[Row]) -> list[StepTimes]:
        """Steps of these rows, in as many trajectories of one prompt as they fill."""
        size = self._rows.table.num_steps
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        return [step for part in parts for step in self._run_trajectory(part)]

    @torch.no_grad()
    def evaluate_conditioning(self, num_steps: int) -> StepTimes:
        """All conditioning of a new prompt, for trajectories of so many timesteps."""
        inputs = self._draw(num_steps)
        return self._clocks.time(lambda: self._rows.evaluate_conditioning(inputs))

    def _run_trajectory(self, rows: Sequence[Row]) -> Iterator[StepTimes]:
        inputs, roles = self._draw(self._rows.table.num_steps), self._rows.roles
        leaves = inputs.leaves
        self._call_tracker.tracker.timestep_sources.attached = inputs.timesteps
        for step, row in enumerate(rows):
            leaves[roles.latent] = leaves[roles.latent].clone()
            if roles.timestep is not None and inputs.timesteps is not None:
                leaves[roles.timestep] = spread(inputs.timesteps[step], leaves[roles.timestep])
            args, kwargs = pytree.tree_unflatten(leaves, self._rows.captured.in_spec)
            self._rows.next_row = row
            with self.cache_context(NAME, None if inputs.timesteps is not None else step):
                yield self._clocks.time(lambda: self(*args, **kwargs))  # noqa: B023  # at once

    def _draw(self, num_steps: int) -> Inputs:
        """New inputs for a trajectory of so many timesteps."""
        placeholders = self._rows.captured.gm.graph.find_nodes(op="placeholder")
        leaves = [draw_like(node.meta.get("val"), self._on) for node in placeholders]
        timestep = self._rows.roles.timestep
        if timestep is None:
            return Inputs(leaves, None)
        dtype = leaves[timestep].dtype
        latest = max(LATEST, num_steps)
        drawn = torch.linspace(latest, 0, num_steps, device=self._on).round().to(dtype)
        if len(set(drawn.tolist())) < num_steps:
            return Inputs(leaves, None)
        leaves[timestep] = spread(drawn[0], leaves[timestep])
        return Inputs(leaves, drawn)


def spread(timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A timestep for each sample: a view of it if the captured one was such."""
    expanded = timestep.expand(like.shape)
    return expanded.clone() if any(like.stride()) else expanded


def draw_like(value: Any, device: torch.device) -> Any:
    """A tensor like a captured input; what is no tensor is itself."""
    if not isinstance(value, torch.Tensor):
        return value
    return Operand.of(value).allocate(device)
