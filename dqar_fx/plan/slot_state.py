"""What a stream's slots hold after some steps of a trajectory, as a value that never changes.

The same steps lead to the same states, trajectory after trajectory: what was worked out for a
state and a step is worked out once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.schedule.action import Action
from dqar_fx.schedule.forecast import weigh
from dqar_fx.schedule.table import NEVER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dqar_fx.schedule.table import BranchTable

    Actions = NDArray[np.int8]

ForecastWeights = tuple[tuple[float, ...], ...]
"""Per site, the weights of its history for a forecast; empty for other actions."""


@dataclass(frozen=True, eq=False)
class SlotState:
    """Which steps' outputs are kept, and where.

    Attributes:
        kept: Per site, the steps whose outputs its buffers hold, newest first.
        newest: Per site, which of its buffers is the newest.
        history: How many outputs of a site are kept at a time.
        overwriters: Per site, the columns of those that overwrite what it keeps; empty where
            no site does.
    """

    kept: tuple[tuple[int, ...], ...]
    newest: tuple[int, ...]
    history: int
    overwriters: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def empty(
        cls, num_sites: int, history: int, overwriters: tuple[tuple[int, ...], ...] = ()
    ) -> SlotState:
        """Make the state at a trajectory's beginning, where nothing is kept."""
        return cls(((),) * num_sites, (0,) * num_sites, history, overwriters)

    def actions_for(self, table: BranchTable, step: int) -> tuple[Actions, int]:
        """Take the table's row, with each REUSE of what is not there made a STORE.

        A kept output is there if it is of this trajectory and at least as new as the table
        says.

        Returns:
            The row, ``int8[sites]``, and the number of sites that start cold.
        """
        stored_at = np.array([steps[0] if steps else NEVER for steps in self.kept], np.int64)
        cold = stored_at < table.sources[step]
        if not cold.any():
            return table.actions[step], 0
        actions = np.where(cold, Action.STORE, table.actions[step]).astype(np.int8)
        return actions, int(cold.sum())

    def after(self, actions: Actions, step: int) -> SlotState:
        """Give the state after a step with these actions, ``int8[sites]``."""
        stores = (actions == Action.STORE).tolist()
        kept = tuple(
            (step, *steps)[: self.history] if is_store else steps
            for steps, is_store in zip(self.kept, stores, strict=True)
        )
        lost = {
            overwriter
            for overwriters, is_store in zip(self.overwriters, stores, strict=False)
            if is_store
            for overwriter in overwriters
        }
        if lost:
            kept = tuple(() if site in lost else steps for site, steps in enumerate(kept))
        return SlotState(kept, self._move(stores), self.history, self.overwriters)

    def places(self, actions: Actions) -> tuple[int, ...]:
        """Say, per site, which of its buffers is the newest; empty if each has but one."""
        return () if self.history == 1 else self._move((actions == Action.STORE).tolist())

    def _move(self, stores: list[bool]) -> tuple[int, ...]:
        """Say, per site, which of its buffers is the newest once it has stored."""
        pairs = zip(self.newest, stores, strict=True)
        return tuple((newest - is_store) % self.history for newest, is_store in pairs)

    def weigh(self, table: BranchTable, actions: Actions, step: int) -> ForecastWeights:
        """Compute the weights of a step's forecasts; empty if there is no history."""
        if self.history == 1:
            return ()
        orders = np.where(actions == Action.FORECAST, table.orders[step], 0).tolist()
        return tuple(
            self._weigh_site(table, step, site, order) if order else ()
            for site, order in enumerate(orders)
        )

    def _weigh_site(
        self, table: BranchTable, step: int, site: int, order: int
    ) -> tuple[float, ...]:
        known = table.weights_for(step, site, self.kept[site])
        if known is None:
            known = weigh(table.method, self.kept[site], step, order, table.damping).tolist()
        return (*known, *[0.0] * (self.history - len(known)))
