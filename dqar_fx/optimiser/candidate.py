"""A candidate of the search: the steps at which each group of sites computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.schedule.forecast import points_of
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.schedule.written_out import WrittenActions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dqar_fx.calibration.calibration import Floats, Integers
    from dqar_fx.guidance.guidance import Guidance

    from .measurements import Measurements
    from .segments import SegmentErrors

SiteGroups = tuple[tuple[int, ...], ...]
"""Per group the columns of its sites, which compute at the same steps."""


@dataclass(frozen=True)
class Candidate:
    """Says which sites compute at which steps; the rest of a schedule follows from it.

    Attributes:
        groups: The groups of sites.
        computed: Per group, the steps that compute, ascending from 0.
        guidance: What the unconditional stream does; None if it does what the other does.
        order: Order of all forecasts, as far as enough is kept; None for the best at each
            step.
    """

    groups: SiteGroups
    computed: tuple[tuple[int, ...], ...]
    guidance: Guidance | None = None
    order: int | None = None

    def ms(self, measured: Measurements) -> float:
        """Predict the time of a trajectory in the denoiser, in milliseconds."""
        skipped = np.ones((measured.num_steps, sum(map(len, self.groups))), bool)
        for group, steps in zip(self.groups, self.computed, strict=True):
            skipped[np.ix_(steps, group)] = False
        table = None if self.guidance is None else self.guidance.output_table()
        if table is None:
            return float((measured.step_ms - skipped @ measured.saved_ms).sum())
        mode = table.is_read[:, 0].astype(int)  # 1 where the unconditional stream is left out
        saved = (skipped * measured.guided_saved_ms[mode]).sum(axis=1)
        return float((measured.guided_ms[mode] - saved).sum())


@dataclass(frozen=True)
class ScheduledCandidate:
    """The schedule that a candidate makes, and what is predicted of it.

    Attributes:
        schedule: The schedule.
        error: Predicted error of the pictures (root mean square, values in [0, 1]).
        cache_bytes: Slot bytes of one stream, without sharing of buffers between sites.
    """

    schedule: Schedule
    error: float
    cache_bytes: int


def schedule_candidate(
    candidate: Candidate,
    measured: Measurements,
    segments: SegmentErrors,
    sites: str | tuple[str, ...],
) -> ScheduledCandidate:
    """Make a candidate's schedule: choose the orders of forecasts, and predict its error."""
    num_steps, num_sites = measured.num_steps, len(measured.sites)
    letters = np.full((num_steps, num_sites), "C", dtype="<U1")
    orders = np.zeros((num_steps, num_sites), np.int64)
    errors = np.zeros((num_steps, num_sites))
    for group, computed in zip(candidate.groups, candidate.computed, strict=True):
        columns = np.array(group)
        for step in range(1, num_steps):
            kept = [s for s in reversed(computed) if s < step][: segments.most_kept]
            by_order = segments.by_order(step, kept)[:, columns]
            best = choose_order(by_order.sum(axis=1), segments.orders, candidate.order)
            errors[step, columns] = by_order[best]
            if step not in computed:
                orders[step, columns] = segments.orders[best]
                letters[step, columns] = "F" if segments.orders[best] else "R"
    rule = WrittenActions(
        letters=tuple(map(tuple, letters.tolist())),
        strict=False,
        orders=tuple(map(tuple, orders.tolist())),
        reasons=reasons_of(letters, orders, errors, measured),
        noise=tuple(measured.noise.tolist()),
    )
    schedule = Schedule(num_steps, rule, method=segments.method, sites=sites)
    return ScheduledCandidate(
        schedule,
        float(errors[letters != "C"].sum()),
        count_cache_bytes(letters, orders, measured, segments.method),
    )


def choose_order(errors: Floats, orders: Sequence[int], wanted: int | None) -> int:
    """The position of the order with the least error, or of the highest up to a wanted one."""
    if wanted is None:
        return int(errors.argmin())
    known = [place for place, order in enumerate(orders) if order <= wanted]
    enough = [place for place in known if np.isfinite(errors[place])]
    return max(enough, key=lambda place: orders[place], default=int(errors.argmin()))


def count_cache_bytes(
    letters: NDArray[np.str_], orders: Integers, measured: Measurements, method: str
) -> int:
    """Count slot bytes: for each site that is read, as many values as a forecast reads."""
    is_read = letters != "C"
    if not is_read.any():
        return 0
    history = max(points_of(method, int(order)) for order in np.unique(orders[is_read]))
    sizes = np.array(measured.site_bytes)
    return int(history * sizes[is_read.any(axis=0)].sum())


def reasons_of(
    letters: NDArray[np.str_],
    orders: Integers,
    errors: Floats,
    measured: Measurements,
) -> tuple[tuple[str, ...], ...]:
    """Say why each site does what it does at each step, with the numbers that decided."""

    def reason(step: int, site: int) -> str:
        error, ms = errors[step, site], measured.saved_ms[site]
        if step == 0:
            return "nothing is kept yet"
        if letters[step, site] == "C":
            return f"computed for {ms:.3g} ms: else its predicted error would be {error:.2e}"
        done = f"order {orders[step, site]}" if orders[step, site] else "as it is"
        return f"{done}, predicted error {error:.2e} of the pictures, saves {ms:.3g} ms"

    steps, sites = letters.shape
    return tuple(tuple(reason(t, s) for s in range(sites)) for t in range(steps))


def group_sites(measured: Measurements) -> dict[str, SiteGroups]:
    """List ways to group sites, from one group to many: all, by kind, by kind and depth."""
    everything = tuple(range(len(measured.sites)))
    kinds = tuple(
        tuple(i for i in everything if measured.kinds[i] == kind)
        for kind in dict.fromkeys(measured.kinds)
    )
    halves = tuple(
        half
        for kind in kinds
        for middle in [(len(kind) + 1) // 2]
        for half in (kind[:middle], kind[middle:])
        if half
    )
    return {"together": (everything,), "by kind": kinds, "by kind and depth": halves}
