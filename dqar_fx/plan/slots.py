"""Slots: the preallocated buffers of one stream, and what each of them holds.

A site's slots live from its first STORE to its last read in a trajectory. Sites whose lives
do not overlap share buffers of equal shape, strides, dtype and device; the slot state forgets
what one of them kept as soon as another stores, whatever the order of steps turns out to be.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.passes import TensorSpec
from dqar_fx.passes.support.formats import is_flag
from dqar_fx.schedule.action import Action

from .slot_state import SlotState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dqar_fx.passes import CacheFormat
    from dqar_fx.schedule.table import BranchTable

    from .slot_state import Actions

SlotKey = tuple[int, int, int, int]
"""Column of the branch table, kept value, place in the history, buffer of the format."""


class Slots:
    """The buffers of one stream: allocated once, written in place, never handed out.

    Args:
        specs: Shape, strides, dtype and device of each slot.
        num_sites: Number of columns of the branch table.
        history: How many outputs of a site are kept at a time.
        owners: Per slot, the one whose buffer it uses, as `share_slots` gives them; each its
            own where left out.

    Attributes:
        specs: Shape, strides, dtype and device of each slot.
        buffers: One tensor per slot, at an address that does not change.
        slot_state: What the buffers hold of this trajectory.
    """

    def __init__(
        self,
        specs: Mapping[SlotKey, TensorSpec],
        num_sites: int,
        history: int = 1,
        owners: Mapping[SlotKey, SlotKey] | None = None,
    ) -> None:
        self.specs = dict(specs)
        owners = owners or {key: key for key in specs}
        own = {key: specs[key].allocate() for key in sorted(set(owners.values()))}
        self.buffers: dict[SlotKey, torch.Tensor] = {key: own[owners[key]] for key in specs}
        self.history = history
        overwriters = find_overwriters(owners, num_sites)
        self._nothing = self.slot_state = SlotState.empty(num_sites, history, overwriters)
        self._trajectory: object = None
        self._flags = [
            (key[0], self.buffers[key]) for key, spec in specs.items() if is_flag(spec)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of the storages that are held."""
        own = {id(buffer): buffer for buffer in self.buffers.values()}
        return sum(buffer.untyped_storage().nbytes() for buffer in own.values())

    def holds(self, trajectory: object) -> bool:
        """Whether what is kept is this trajectory's."""
        return trajectory is self._trajectory

    def enter(self, trajectory: object) -> None:
        """Forget what an earlier trajectory left."""
        self.slot_state = self._nothing
        self._trajectory = trajectory
        if self.history > 1:  # what a forecast multiplies by zero must be a number
            for buffer in self.buffers.values():
                buffer.zero_()

    def take_over(self, other: Slots) -> None:
        """Go on with what other slots hold, of the same specs; they hold nothing then."""
        pairs = {id(own): (own, other.buffers[key]) for key, own in self.buffers.items()}
        for own, given in pairs.values():
            own.copy_(given)
        self.slot_state, self._trajectory = other.slot_state, other._trajectory
        other.forget()

    def forget(self) -> None:
        """Let nothing be read that is in the buffers now."""
        self._trajectory = None

    def take_flags(self) -> list[int]:
        """List the columns that kept what is not finite since the flags were taken last.

        This waits for the device.
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
        self.slot_state = self.slot_state.after(actions, step)

    def buffer(self, key: SlotKey, places: tuple[int, ...]) -> torch.Tensor:
        """Find the buffer that stands at a place of a history.

        Args:
            key: The slot, whose place is counted from the newest buffer.
            places: Per site, which of its buffers is the newest; empty if each has but one.
        """
        column, value, place, part = key
        if places:
            place = (place + places[column]) % self.history
        return self.buffers[column, value, place, part]

    def read(self, column: int, place: int, cache: CacheFormat) -> list[torch.Tensor]:
        """Read what a site has kept in a place of its history, 0 for the newest: float32."""
        parts: dict[int, list[torch.Tensor]] = {}
        for key in sorted(self.specs):
            if key[0] == column and key[2] == place:
                parts.setdefault(key[1], []).append(self.buffer(key, self.slot_state.newest))
        return [cache.read(part, torch.float32).float() for part in parts.values()]


def plan_slots(
    specs: Mapping[SlotKey, TensorSpec], table: BranchTable
) -> dict[SlotKey, TensorSpec]:
    """Keep the slots of those sites that the table ever stores; the others need none."""
    stored = set(np.nonzero((table.actions == Action.STORE).any(axis=0))[0].tolist())
    return {key: spec for key, spec in specs.items() if key[0] in stored}


Life = tuple[int, int]
"""First and last step at which a site's slots hold something that is read."""


def find_lives(table: BranchTable) -> dict[int, Life]:
    """Find the life of each column that the table stores: first STORE to last read."""
    is_stored = table.actions == Action.STORE
    lives = {}
    for column in np.nonzero(is_stored.any(axis=0))[0].tolist():
        used = np.nonzero(is_stored[:, column] | table.is_read[:, column])[0]
        lives[column] = (int(used[0]), int(used[-1]))
    return lives


def share_slots(
    specs: Mapping[SlotKey, TensorSpec], table: BranchTable
) -> dict[SlotKey, SlotKey]:
    """Find, per slot, the one whose buffer it uses; itself where nothing is shared.

    Lives are intervals of steps: those that share a step, even where one ends and the other
    begins, have buffers of their own. Taken by their beginning, each in a buffer whose last
    life is over, they need as few as there are lives at the busiest step. Flags are not
    shared: they are read at the end.

    Source: left-edge algorithm (Hashimoto and Stevens 1971); greedy colouring of interval
    graphs.
    """
    lives, alike = find_lives(table), defaultdict[TensorSpec, list[SlotKey]](list)
    owners = {key: key for key in specs}
    for key, spec in specs.items():
        if not is_flag(spec):
            alike[spec].append(key)
    for keys in alike.values():
        free: list[tuple[int, SlotKey]] = []  # last step of a buffer's latest life; its owner
        for key in sorted(keys, key=lambda key: (*lives[key[0]], key)):
            start, end = lives[key[0]]
            if free and free[0][0] < start:
                _, owners[key] = heapq.heappop(free)
            heapq.heappush(free, (end, owners[key]))
    return owners


def find_overwriters(
    owners: Mapping[SlotKey, SlotKey], num_sites: int
) -> tuple[tuple[int, ...], ...]:
    """Find, per column, the others that use one of its buffers; empty if none is shared."""
    users = defaultdict[SlotKey, set[int]](set)
    for key, owner in owners.items():
        users[owner].add(key[0])
    overwriters: list[set[int]] = [set() for _ in range(num_sites)]
    for columns in users.values():
        for column in columns:
            overwriters[column] |= columns - {column}
    return tuple(tuple(sorted(each)) for each in overwriters) if any(overwriters) else ()
