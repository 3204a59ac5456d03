"""L2P (arXiv 2604.26365), whose weights predict a step from all steps before it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule, as_schedule

from .decisions import read_json

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

POINTS = 4
"""Computed outputs that a forecast reads at most: those of order 3."""


def read_l2p(
    weights: str | Path | ArrayLike,
    schedule: Schedule | str,
    *,
    sites: str | tuple[str, ...] = "span",
) -> Schedule:
    """Forecast what a schedule would reuse by the weights that L2P has learned.

    Row *t* of its weights predicts step *t* + 1 from all outputs up to step *t*, where those
    that were predicted count as well. Put into each other, a prediction is a weighted sum of
    computed outputs. Of these the last four are read here; the weights of older ones are
    added to the oldest of the four, so that their sum stands.

    Args:
        weights: Its file, or the numbers: ``[steps, steps]`` or more, of which the upper
            triangle is not used.
        schedule: Which steps compute, such as ``Schedule.interval(50, 7, warmup=3)``; of one
            decision for all sites.
        sites: Sites that the weights are for: L2P predicts what all blocks give.

    Returns:
        A schedule for the sites.

    Raises:
        ScheduleError: The file cannot be read, there are fewer weights than steps, one is no
            number, or the schedule has no number of steps.

    Source:
        Shen et al. 2026, arXiv 2604.26365; Aredstone/L2P-Cache, predictor/train.py.
    """
    schedule = as_schedule(schedule)
    if schedule.num_steps is None:
        raise ScheduleError(
            "the schedule has no number of steps, but L2P's weights are for certain ones: "
            "give it one, such as Schedule.interval(50, 7)"
        )
    matrix, steps = read_matrix(weights), schedule.num_steps
    if len(matrix) < steps:
        raise ScheduleError(
            f"L2P's weights are for {len(matrix)} steps, but the schedule has {steps}"
        )
    actions = schedule.resolve(("all",)).actions[:, 0]
    computed = np.isin(actions, (Action.COMPUTE, Action.STORE))
    sums = np.eye(steps)
    found = np.zeros((steps, 1, POINTS))
    for step in np.flatnonzero(~computed):
        sums[step] = matrix[step - 1, :step] @ sums[:step]
        kept = np.flatnonzero(computed[:step])[::-1]
        read, older = kept[:POINTS], kept[POINTS:]
        found[step, 0, : len(read)] = sums[step, read]
        found[step, 0, len(read) - 1] += sums[step, older].sum()
    letters = "".join("C" if each else "F" for each in computed)
    written = Schedule.from_actions(letters, orders=POINTS - 1, weights=found)
    return Schedule(steps, written.rule, method=written.method, sites=sites)


def read_matrix(weights: str | Path | ArrayLike) -> Floats:
    """Return the weights: float64 ``[steps, steps]``.

    Raises:
        ScheduleError: They cannot be read, or are no square of numbers.
    """
    content = weights
    if isinstance(weights, str | Path):
        expected = "its weight.txt: [[...], [...], ...]"
        content = read_json(weights, "weights of L2P", expected)
    try:
        matrix = np.asarray(content, np.float64)
    except (ValueError, TypeError):
        matrix = np.empty(0)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ScheduleError(
            f"L2P's weights have to be a square of numbers, [steps, steps]; found shape "
            f"{list(matrix.shape)}"
        )
    return matrix
