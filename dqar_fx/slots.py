"""Slots: the preallocated buffers of one stream, and what each of them holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.passes import Action, TensorSpec
from dqar_fx.passes.formats import is_flag

from .ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

    from .ledger import Actions
    from .table import BranchTable

SlotKey = tuple[int, int, int, int]
"""Column of the branch table, kept value, place in the history, buffer of the format."""


class Slots:
    """The buffers of one stream: allocated once, written in place, never handed out.

    Attributes:
        buffers: One tensor per slot, at an address that does not change.
        ledger: What they hold of this trajectory.
    """

    def __init__(
        self, specs: Mapping[SlotKey, TensorSpec], num_sites: int, history: int = 1
    ) -> None:
        self.buffers: dict[SlotKey, torch.Tensor] = {
            key: spec.allocate() for key, spec in specs.items()
        }
        self.history = history
        self._nothing = self.ledger = Ledger.empty(num_sites, history)
        self._trajectory: object = None
        self._flags = [
            (key[0], self.buffers[key]) for key, spec in specs.items() if is_flag(spec)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of the storages that are held."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self.buffers.values())

    def holds(self, trajectory: object) -> bool:
        """Whether what is kept is this trajectory's."""
        return trajectory is self._trajectory

    def enter(self, trajectory: object) -> None:
        """Forget what an earlier trajectory left."""
        self.ledger = self._nothing
        self._trajectory = trajectory
        if self.history > 1:  # what a forecast multiplies by zero must be a number
            for buffer in self.buffers.values():
                buffer.zero_()

    def forget(self) -> None:
        """Let nothing be read that is in the buffers now."""
        self._trajectory = None

    def take_flags(self) -> list[int]:
        """Columns that kept what is not finite, since the flags were taken last.

        Waits for the device.
        """
        if not self._flags or self._flags[0][1].is_meta:
            return []
        columns, flags = zip(*self._flags, strict=True)
        raised = torch.stack(flags).tolist()
        if any(raised):
            for flag in flags:
                flag.zero_()
        pairs = zip(columns, raised, strict=True)
        return sorted({column for column, is_up in pairs if is_up})

    def note(self, actions: Actions, step: int) -> None:
        """Record what a step has stored."""
        self.ledger = self.ledger.after(actions, step)

    def buffer(self, key: SlotKey, places: tuple[int, ...]) -> torch.Tensor:
        """The buffer that stands at a place of a history."""
        column, value, place, part = key
        if places:
            place = (place + places[column]) % self.history
        return self.buffers[column, value, place, part]


def slots_of(guarded: fx.GraphModule) -> dict[SlotKey, TensorSpec]:
    """The slots that a guarded graph has inputs for."""
    return {
        node.meta["slot"]: TensorSpec.of(node.meta["val"])
        for node in guarded.graph.find_nodes(op="placeholder")
        if "slot" in node.meta
    }


def plan_slots(
    specs: Mapping[SlotKey, TensorSpec], table: BranchTable
) -> dict[SlotKey, TensorSpec]:
    """Slots of those sites that the table ever stores; the others need none."""
    stored = set(np.nonzero((table.actions == Action.STORE).any(axis=0))[0].tolist())
    return {key: spec for key, spec in specs.items() if key[0] in stored}
