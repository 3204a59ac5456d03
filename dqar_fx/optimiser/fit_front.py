"""The last stage of a search: fitting the weights of a front's tables to the model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.schedule.forecast import MAX_ORDER, points_of
from dqar_fx.schedule.written_out import WrittenActions

from .fit import fit, with_weights
from .fit_weights import RIDGE
from .trials import digest_of, pooled_psnr

if TYPE_CHECKING:
    from pathlib import Path

    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

    from .front import Front
    from .trials import PipelineJob, ScheduleTrials

MAX_FITTED = 2
"""How many points are fitted where the time is given."""
RIDGES = (RIDGE, 1.0)
"""The ridges that are tried. The error of one step on other pictures does not tell which is
better: where pictures are fitted, the steps before are fitted to them, too."""


def fit_front(
    front: Front,
    job: PipelineJob,
    trials: tuple[ScheduleTrials, ScheduleTrials],
    folder: Path | None,
    ms: float | None,
) -> Front:
    """Add fitted points to a front, which take the time of those that they come from.

    Args:
        front: The front, whose points that forecast and have no guidance of their own are
            fitted.
        job: What weights are fitted on; its seeds are not those of the trials.
        trials: Trials on two sets of seeds, which are judged together.
        folder: The folder that weights are kept in, so that a search that was stopped can go
            on; or None.
        ms: Most milliseconds, of which only the last points within are fitted; None for all.
    """
    within = [p for p in front.points if ms is None or p.ms <= ms]
    chosen = within if ms is None else within[-MAX_FITTED:]
    fitted = []
    for point in chosen:
        table = front.table(point)
        if point.guidance is None and table.history > 1:
            for ridge in RIDGES:
                schedule = fit_point(point.schedule, table, job, folder, ridge)
                psnr_db = pooled_psnr(*(each.psnr(schedule, front.sites) for each in trials))
                fitted.append(replace(point, schedule=schedule, psnr_db=psnr_db))
    return front.of((*front.points, *fitted), front.sites, front.full_ms, front.fingerprint)


def fit_point(
    schedule: Schedule, table: BranchTable, job: PipelineJob, folder: Path | None, ridge: float
) -> Schedule:
    """Fit the weights of a schedule, or read them where that was done before."""
    wide = widen(schedule, table.history)
    assert wide.sites is not None, "a search says which sites its schedules are for"
    resolved = wide.resolve(table.sites, around=table.around)
    name = f"{digest_of(resolved, None)}-{ridge:g}.json"
    path = None if folder is None else folder / "fitted" / name
    if path is not None and path.exists():
        weights = np.array(json.loads(path.read_text()))
        model = Fingerprint.of(job.pipeline.transformer)
        return with_weights(resolved, weights, wide.sites, model)
    fitted = fit(job, wide, wide.sites, ridge)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = fitted.resolve(table.sites, around=table.around).weights
        path.write_text(json.dumps(weights.tolist()) + "\n")
    return fitted


def widen(schedule: Schedule, history: int) -> Schedule:
    """Let all forecasts of a schedule read all that is kept, so that weights decide."""
    rule, method = schedule.rule, schedule.method
    assert isinstance(rule, WrittenActions), "tables of a search are written out"
    order = next(o for o in range(MAX_ORDER + 1) if points_of(method, o) == history)
    letters = [["C" if c == "C" else "F" for c in row] for row in rule.letters]
    orders = [[order if c == "F" else 0 for c in row] for row in letters]
    wide = replace(
        rule,
        letters=tuple(map(tuple, letters)),
        orders=tuple(map(tuple, orders)),
    )
    return replace(schedule, rule=wide)
