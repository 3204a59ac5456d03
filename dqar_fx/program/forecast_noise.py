"""Whether forecasts amplify the rounding of what is kept beyond the change that they predict.

What a forecast reads was rounded to the storage format, and its weights, which alternate in
sign, amplify that. In the first trajectory of a program every step that forecasts is looked
at: rounding and weights are known before, and how fast a site changes is seen in its slots.
What is found is read at the trajectory's end, so that no step waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.errors import ForecastNoiseWarning
from dqar_fx.notices import warn
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.forecast import amplify

if TYPE_CHECKING:
    from dqar_fx.passes import CacheFormat
    from dqar_fx.plan.slot_state import Actions
    from dqar_fx.plan.slots import Slots
    from dqar_fx.schedule.table import BranchTable

WARN_FROM = 0.1
"""Share of a trajectory's forecasts that amplify too much, from which on that is said: a few
that do, where a trajectory begins, do no harm that pictures show."""


@dataclass(frozen=True)
class ForecastCell:
    """A forecast that was made.

    Attributes:
        step: Its step.
        column: Its site's column of the branch table.
        order: Its order.
        factor: By how much it amplifies noise.
        change: By how much the site changes until its step, relative to its size, if it goes
            on as between the two outputs that were kept last: float32, without dimensions.
    """

    step: int
    column: int
    order: int
    factor: float
    change: torch.Tensor


@dataclass
class ForecastNoise:
    """Looks at the forecasts of one program.

    Attributes:
        cache: The format of what is kept.
        seen: Steps that were looked at.
        cells: Forecasts of which nothing was said yet.
    """

    cache: CacheFormat
    seen: set[int] = field(default_factory=set)
    cells: list[ForecastCell] = field(default_factory=list)

    def look(self, table: BranchTable, slots: Slots, actions: Actions, step: int) -> None:
        """Look at the forecasts of a step that is about to run for the first time."""
        if not self.cache.rounding or slots.history == 1 or step in self.seen:
            return
        self.seen.add(step)
        state = slots.slot_state
        weights = state.weigh(table, actions, step)
        for column in np.flatnonzero(actions == Action.FORECAST).tolist():
            kept = state.kept[column]
            if len(kept) > 1:
                change = self._change(slots, column) * (step - kept[0]) / (kept[0] - kept[1])
                order = min(int(table.orders[step, column]), len(kept) - 1)
                factor = amplify(weights[column])
                self.cells.append(ForecastCell(step, column, order, factor, change))

    def _change(self, slots: Slots, column: int) -> torch.Tensor:
        """How far the newest two outputs of a site are apart, without their rounding."""
        now, before = (slots.read(column, place, self.cache) for place in (0, 1))
        pairs = zip(now, before, strict=True)
        apart = norm_of([a - b for a, b in pairs]) / norm_of(now)
        return (apart.square() - 2 * self.cache.rounding**2).clamp(min=0).sqrt()

    def report(self, table: BranchTable) -> None:
        """Warn if many forecasts amplify more than they predict; waits for the device."""
        cells, self.cells = self.cells, []
        if not cells or cells[0].change.is_meta:
            return
        changes = torch.stack([cell.change for cell in cells]).tolist()
        rounding = self.cache.rounding
        beyond = [
            (rounding * cell.factor - change, change, cell)
            for change, cell in zip(changes, cells, strict=True)
            if rounding * cell.factor > change
        ]
        if len(beyond) < max(WARN_FROM * len(cells), 1):
            return
        _, change, cell = max(beyond, key=lambda found: found[0])
        lower = f"a lower order, forecast({cell.order - 1}); " if cell.order > 1 else ""
        wanted = max(2 * table.damping, 0.5)
        warn(
            f"{len(beyond)} of {len(cells)} forecasts amplify the rounding of "
            f"cache={self.cache.name!r} beyond the change that they predict, most at "
            f"{table.where(cell.step, cell.column)}: order {cell.order} makes "
            f"{rounding * cell.factor:.2%} of a rounding error of {rounding:.2%} (times "
            f"{cell.factor:.2f}), where the output is to change by {change:.2%} of its size. "
            f"Take a wider format, cache='fp16'; {lower}or damping, "
            f"forecast({cell.order}, damping={wanted:.2g})",
            ForecastNoiseWarning,
        )


def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all values: float32, without dimensions, above 0."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    whole: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole.clamp(min=torch.finfo(torch.float32).tiny)
