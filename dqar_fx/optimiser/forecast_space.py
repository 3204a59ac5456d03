"""The weights of a table's forecasts as a vector: at each step the same for all sites."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.schedule.action import Action
from dqar_fx.schedule.forecast import weigh

from .fit import with_weights

if TYPE_CHECKING:
    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.calibration.fingerprint import Fingerprint
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable


@dataclass(frozen=True)
class ForecastSpace:
    """Schedules of the same actions, as vectors of what is added to the weights.

    Attributes:
        table: The actions.
        sites: As for ``transform``.
        fingerprint: Identifies the model.
    """

    table: BranchTable
    sites: str | tuple[str, ...]
    fingerprint: Fingerprint

    @cached_property
    def is_forecast(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which cells forecast, ``[steps, sites]``."""
        return np.asarray(self.table.actions == Action.FORECAST)

    @cached_property
    def weights(self) -> Floats:
        """The weights that the table's forecasts have: float64 ``[steps, sites, points]``."""
        table = self.table
        found = np.zeros((*table.actions.shape, table.history))
        for step, site in np.argwhere(self.is_forecast):
            kept, order = table.kept[step][site], int(table.orders[step, site])
            given = table.weights_for(step, site, kept)
            if given is None:
                given = weigh(table.method, kept, step, order, table.damping).tolist()
            found[step, site, : len(given)] = given
        return found

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Step, and place among the kept outputs, of each number of a vector."""
        return [
            (step, place)
            for step in np.flatnonzero(self.is_forecast.any(axis=1)).tolist()
            for place in range(max(map(len, self.table.kept[step])))
            if place < self.table.history
        ]

    def schedule(self, added: Floats) -> Schedule:
        """The schedule whose weights have grown by the numbers of a vector."""
        weights = self.weights.copy()
        for (step, place), number in zip(self.places, added, strict=True):
            known = self.is_forecast[step] & (place < self.num_kept[step])
            weights[step, known, place] += number
        return with_weights(self.table, weights, self.sites, self.fingerprint)

    @cached_property
    def num_kept(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """How many outputs each cell may read, ``[steps, sites]``."""
        return np.array([[len(kept) for kept in row] for row in self.table.kept])
