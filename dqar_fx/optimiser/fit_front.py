"""The last stage of a search: the tables of a front, with weights fitted to the model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.schedule.forecast import MAX_ORDER, points_of
from dqar_fx.schedule.written_out import WrittenActions

from .fit import RIDGES, fit, with_weights
from .trials import identity, together

if TYPE_CHECKING:
    from pathlib import Path

    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

    from .front import Front
    from .trials import Job, Trials

MOST_FITTED = 2
"""Points that are fitted where the time is given."""


def fit_front(
    front: Front,
    job: Job,
    trials: tuple[Trials, Trials],
    folder: Path | None,
    ms: float | None,
) -> Front:
    """The front with fitted points, which take the time of those they come from.

    Args:
        front: Its points that forecast, without guidance of their own, are fitted.
        job: What weights are fitted on; other seeds than those of the trials.
        trials: Two sets of seeds, which judge together.
        folder: Where weights are kept, so that a search goes on; or None.
        ms: The time: only the last points within it are fitted; None for all.
    """
    within = [p for p in front.points if ms is None or p.ms <= ms]
    chosen = within if ms is None else within[-MOST_FITTED:]
    fitted = []
    for point in chosen:
        table = front.table(point)
        if point.guidance is None and table.history > 1:
            for ridge in RIDGES:
                schedule = fit_point(point.schedule, table, job, folder, ridge)
                one, other = (each.psnr(schedule, front.sites) for each in trials)
                fitted.append(replace(point, schedule=schedule, psnr_db=together(one, other)))
    return front.of((*front.points, *fitted), front.sites, front.full_ms)


def fit_point(
    schedule: Schedule, table: BranchTable, job: Job, folder: Path | None, ridge: float
) -> Schedule:
    """One schedule fitted, or read where that was done before."""
    wide = widen(schedule, table.history)
    assert wide.sites is not None, "a search says which sites its schedules are for"
    resolved = wide.resolve(table.sites, around=table.around)
    name = f"{identity(resolved, None)}-{ridge:g}.json"
    path = None if folder is None else folder / "fitted" / name
    if path is not None and path.exists():
        weights = np.array(json.loads(path.read_text()))
        model = Fingerprint.of(job.pipeline.transformer)
        return with_weights(resolved, weights, wide.sites, model)
    found = fit(job, wide, wide.sites, ridge)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = found.resolve(table.sites, around=table.around).weights
        path.write_text(json.dumps(weights.tolist()) + "\n")
    return found


def widen(schedule: Schedule, history: int) -> Schedule:
    """The same computed steps; all that is kept is read, and weights decide."""
    rule, method = schedule.rule, schedule.method
    assert isinstance(rule, WrittenActions), "tables of a search are written out with reasons"
    order = next(o for o in range(MAX_ORDER + 1) if points_of(method, o) == history)
    letters = [["C" if c == "C" else "F" for c in row] for row in rule.letters]
    orders = [[order if c == "F" else 0 for c in row] for row in letters]
    wide = replace(
        rule,
        letters=tuple(map(tuple, letters)),
        orders=tuple(map(tuple, orders)),
    )
    return replace(schedule, rule=wide)
