"""Slots: the preallocated buffers of one stream, and what each of them holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.passes import Action, TensorSpec
from dqar_fx.passes.formats import is_flag

from .forecast import weigh
from .table import NEVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import fx

    from .table import BranchTable

SlotKey = tuple[int, int, int, int]
"""Column of the branch table, kept value, place in the history, buffer of the format."""


class Slots:
    """The buffers of one stream: allocated once, written in place, never handed out.

    Attributes:
        buffers: One tensor per slot, at an address that does not change.
        stored_at: int64 ``[sites]``: the step of this trajectory whose output a site's
            buffers hold, or `NEVER`.
    """

    def __init__(
        self, specs: Mapping[SlotKey, TensorSpec], num_sites: int, history: int = 1
    ) -> None:
        self.buffers: dict[SlotKey, torch.Tensor] = {
            key: spec.allocate() for key, spec in specs.items()
        }
        self.stored_at: NDArray[np.int64] = np.full(num_sites, NEVER)
        self.history = history
        self._newest = [0] * num_sites
        self._kept: list[list[int]] = [[] for _ in range(num_sites)]
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
        self.stored_at[:] = NEVER
        self._kept = [[] for _ in self._kept]
        self._trajectory = trajectory
        if self.history > 1:  # what a forecast multiplies by zero must be a number
            for buffer in self.buffers.values():
                buffer.zero_()

    def forget(self) -> None:
        """Let nothing be read that is in the buffers now."""
        self._trajectory = None

    def actions_for(self, table: BranchTable, step: int) -> tuple[NDArray[np.int8], int]:
        """The table's row with each REUSE of what is not there made a STORE.

        A kept output is there if it is of this trajectory and at least as new as the table
        says. Returns the row and the number of sites that start cold.
        """
        cold = self.stored_at < table.sources[step]
        if not cold.any():
            return table.actions[step], 0
        return np.where(cold, Action.STORE, table.actions[step]).astype(np.int8), int(
            cold.sum()
        )

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

    def note(self, actions: NDArray[np.int8], step: int) -> None:
        """Record what a step has stored."""
        self.stored_at[actions == Action.STORE] = step
        if self.history == 1:
            return
        self._newest = list(self.places(actions))
        for column in np.nonzero(actions == Action.STORE)[0]:
            self._kept[column] = [step, *self._kept[column]][: self.history]

    def places(self, actions: NDArray[np.int8]) -> tuple[int, ...]:
        """Per site, which of its buffers is the newest at a step: stores move on by one."""
        if self.history == 1:
            return ()
        moves = (actions == Action.STORE).tolist()
        pairs = zip(self._newest, moves, strict=True)
        return tuple((newest - is_store) % self.history for newest, is_store in pairs)

    def weigh(
        self, table: BranchTable, actions: NDArray[np.int8], step: int
    ) -> tuple[tuple[float, ...], ...]:
        """Per site, the weights of its history for a forecast; empty for other actions."""
        if self.history == 1:
            return ()
        orders = np.where(actions == Action.FORECAST, table.orders[step], 0).tolist()
        return tuple(
            self._weights(table.method, tuple(kept), step, order) if order else ()
            for kept, order in zip(self._kept, orders, strict=True)
        )

    def _weights(
        self, method: str, kept: tuple[int, ...], step: int, order: int
    ) -> tuple[float, ...]:
        known = weigh(method, kept, step, order).tolist()
        return (*known, *[0.0] * (self.history - len(known)))

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
