"""What the unconditional stream has for one input signature: a program, kept outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.plan.slots import Slots, plan_slots
from dqar_fx.schedule.action import Action
from dqar_fx.steps.stream_key import session_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.passes import TensorSpec
    from dqar_fx.plan.slots import SlotKey
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position
    from dqar_fx.steps.stream_key import StreamKey

    from .guidance import Guidance

    Tensors = Sequence[torch.Tensor]


class WholeOutput:
    """The outputs of one stream at its last computed steps.

    Either as they are, or each as its difference from a base: then reading adds the base of
    the step that reads. Buffers have addresses that do not change and are never handed out.

    Args:
        table: What is done at each step, in one column.
        specs: `specs_of` the table and the outputs.
    """

    def __init__(self, table: BranchTable, specs: dict[SlotKey, TensorSpec]) -> None:
        self.table = table
        self.slots = Slots(specs, 1, table.history)

    def action_at(self, position: Position) -> tuple[Action, bool]:
        """What to do at a step, and whether that is to compute because nothing is kept."""
        if not self.slots.holds(position.trajectory):
            self.slots.enter(position.trajectory)
        actions, cold = self.slots.slot_state.actions_for(self.table, position.step)
        return Action(int(actions[0])), bool(cold)

    def read(self, step: int, action: Action, base: Tensors | None) -> list[torch.Tensor]:
        """The kept outputs, or their forecast; new tensors."""
        actions = np.array([action], np.int8)
        slot_state = self.slots.slot_state
        places = slot_state.places(actions)
        weights = slot_state.weigh(self.table, actions, step)
        used = weights[0] if action == Action.FORECAST else (1.0,)
        kept = [combine(history, used) for history in self._histories(places)]
        if base is None:
            return kept
        return [onto + value for onto, value in zip(base, kept, strict=True)]

    def write(self, step: int, outputs: Tensors, base: Tensors | None) -> None:
        """Keep the outputs of a step, in place."""
        actions = np.array([Action.STORE], np.int8)
        histories = self._histories(self.slots.slot_state.places(actions))
        try:
            for i, (history, output) in enumerate(zip(histories, outputs, strict=True)):
                if base is None:
                    history[0].copy_(output)
                else:
                    torch.sub(output, base[i], out=history[0])
            self.slots.note(actions, step)
        except BaseException:
            self.slots.forget()  # some buffers may be written and others not
            raise

    def _histories(self, places: tuple[int, ...]) -> list[list[torch.Tensor]]:
        """List the buffers of each output from the newest to the oldest."""
        numbers = sorted({value for _, value, _, _ in self.slots.buffers})
        return [
            [self.slots.buffer((0, n, k, 0), places) for k in range(self.table.history)]
            for n in numbers
        ]


def specs_of(table: BranchTable, outputs: Sequence[TensorSpec]) -> dict[SlotKey, TensorSpec]:
    """The buffers of a table's one site: one per output and place in the history."""
    places = range(table.history)
    every = {(0, n, k, 0): spec for n, spec in enumerate(outputs) for k in places}
    return plan_slots(every, table)


def combine(history: Tensors, weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum of a history; a copy where that is its newest value.

    What has no weight is left out: an older trajectory may have left anything there.
    """
    if weights[0] == 1 and not any(weights[1:]):
        return history[0].clone()
    wide = torch.promote_types(history[0].dtype, torch.float32)
    pairs = ((w, value) for w, value in zip(weights, history, strict=False) if w)
    total = torch.zeros_like(history[0], dtype=wide)
    for weight, value in pairs:
        total.add_(value.to(wide), alpha=weight)
    return total.to(history[0].dtype)


@dataclass
class UnconditionalStream:
    """A program over the conditional one's graph and regions, and what is kept around it.

    Attributes:
        program: The program, which has a table of its own.
        outputs: Specs of the flat outputs.
        table: Of the whole output; None if that is never kept.
        holds: Whether to hold conditional outputs until they are needed.
        kept: What the streams that were called have kept.
        held: By session, the outputs of its latest conditional call, at addresses that do not
            change.
    """

    program: Program
    outputs: tuple[TensorSpec, ...]
    table: BranchTable | None
    holds: bool
    kept: dict[StreamKey, WholeOutput] = field(default_factory=dict)
    held: dict[int | None, list[torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, program: Program, schedule: Schedule, guidance: Guidance
    ) -> UnconditionalStream:
        """Make it for a conditional program, which has that schedule."""
        sites, around = program.table.sites, program.table.around
        return cls(
            program.with_table(guidance.resolve(schedule, sites, around)),
            program.output_specs,
            guidance.output_table(),
            holds=guidance.keeps_difference and guidance.batched is None,
        )

    def whole_output(self, stream: StreamKey) -> WholeOutput | None:
        """What a stream keeps of its whole output; None if nothing."""
        if self.table is None:
            return None
        if stream not in self.kept:
            self.kept[stream] = WholeOutput(self.table, specs_of(self.table, self.outputs))
        return self.kept[stream]

    def hold(self, outputs: Sequence[torch.Tensor], session: int | None) -> list[torch.Tensor]:
        """Copies of a session's conditional outputs: the caller may write to its own."""
        if session not in self.held:
            self.held[session] = [spec.allocate() for spec in self.outputs]
        for buffer, output in zip(self.held[session], outputs, strict=True):
            buffer.copy_(output)
        return self.held[session]

    def forget_session(self, number: int | None) -> None:
        """Forget the streams of a session; None for what has none."""
        self.program.forget_session(number)
        for key in [key for key in list(self.kept) if session_of(key) == number]:
            del self.kept[key]
        self.held.pop(number, None)

    def reset(self) -> None:
        """Forget all kept outputs and streams."""
        self.program.reset()
        self.kept.clear()
        self.held.clear()

    @property
    def cache_bytes(self) -> int:
        """Bytes that one stream takes, what is held for it included."""
        if self.table is None:
            return self.program.cache_bytes
        specs = specs_of(self.table, self.outputs)
        held = self.outputs if self.holds and specs else ()
        return self.program.cache_bytes + sum(s.nbytes for s in (*specs.values(), *held))
