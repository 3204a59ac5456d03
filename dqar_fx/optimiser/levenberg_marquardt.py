"""Least squares of a function that is only known by its values.

Each round finds by how much each parameter changes the residuals, by finite differences, and
takes the damped step of Gauss and Newton:

    step = -(J'J + damping diag(J'J))^-1 J' r

The damping falls where a step helps, and grows where it does not. While steps help much, what
they have changed corrects the effects, so that more of them follow without new differences.
Source: Marquardt 1963, "An algorithm for least-squares estimation of nonlinear parameters".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dqar_fx.calibration.calibration import Floats

DAMPING, LEAST_DAMPING, FACTOR = 1e-2, 1e-6, 4.0
TRIES = 6
"""Dampings that are tried in a round before it is given up."""
LARGEST_STEP = 1.0
"""By how much a parameter changes in a round, at most."""
LEAST_GAIN = 1e-3
"""Share of the mean square by which a round has to lower it for another one to follow."""
WORTH = 0.03
"""Share by which a step has to lower it for another one to follow with corrected effects."""


@dataclass(frozen=True)
class Minimum:
    """Where a search ended.

    Attributes:
        parameters: float64 ``[parameters]``.
        mean_square: Of the residuals there.
        rounds: Rounds that lowered it.
    """

    parameters: Floats
    mean_square: float
    rounds: int


def minimise(
    residuals: Callable[[Floats], torch.Tensor],
    start: Floats,
    *,
    rounds: int,
    nudge: float = 1e-2,
    report: Callable[[int, float, Floats], None] = lambda *_: None,
) -> Minimum:
    """Find parameters with small residuals.

    Args:
        residuals: Gives a vector for parameters; equal ones for equal parameters.
        start: Parameters to begin with, float64 ``[parameters]``.
        rounds: Most rounds; each takes an evaluation per parameter, and one for each step
            and damping that is tried.
        nudge: By how much a parameter is changed to see what it does.
        report: Is called with the number of each round, and the mean square and the
            parameters after it.

    Raises:
        ScheduleError: The residuals are not finite to begin with.
    """
    parameters, found, damping = start, residuals(start).double(), DAMPING
    if not found.isfinite().all():
        raise ScheduleError(
            "a fit cannot begin with numbers that are not finite: expected pictures, or what "
            "is compared, without NaN"
        )
    number = 0
    while number < rounds and found.any():
        before = found
        nudged = (residuals(parameters + nudge * unit) for unit in np.eye(len(start)))
        effects = torch.stack([each.double() - found for each in nudged]) / nudge
        effects = effects.nan_to_num(0.0, 0.0, 0.0)  # where a nudge is too much: left alone
        is_worth_another = True
        while is_worth_another:
            step, other, damping = find_step(residuals, parameters, found, effects, damping)
            if other is None:
                break
            is_worth_another = lowered_by(found, other) > WORTH
            effects = correct(effects, step, other - found)
            parameters, found = parameters + step, other
        if lowered_by(before, found) > 0:
            number += 1
            report(number, float(found.square().mean()), parameters)
        if lowered_by(before, found) < LEAST_GAIN:
            break
    return Minimum(parameters, float(found.square().mean()), number)


def find_step(
    residuals: Callable[[Floats], torch.Tensor],
    parameters: Floats,
    found: torch.Tensor,
    effects: torch.Tensor,
    damping: float,
) -> tuple[Floats, torch.Tensor | None, float]:
    """A step that lowers the residuals, these after it or None, and the next damping."""
    normal = (effects @ effects.T).cpu().numpy()
    gradient = (effects @ found).cpu().numpy()
    for _ in range(TRIES):
        step = damped_step(normal, gradient, damping)
        other = residuals(parameters + step).double()
        if lowered_by(found, other) > 0:
            return step, other, max(damping / FACTOR, LEAST_DAMPING)
        damping *= FACTOR
    return step, None, damping


def lowered_by(before: torch.Tensor, after: torch.Tensor) -> float:
    """The share of the sum of squares that is gone; 0 where it grew or is no number."""
    sums = float(before.square().sum()), float(after.square().sum())
    return 0.0 if not sums[1] < sums[0] else 1 - sums[1] / sums[0]


def correct(effects: torch.Tensor, step: Floats, change: torch.Tensor) -> torch.Tensor:
    """Effects that explain what a step has changed, and differ least from those before.

    Source: Broyden 1965, "A class of methods for solving nonlinear simultaneous equations".
    """
    direction = torch.from_numpy(step).to(effects)
    missed = change - direction @ effects
    return effects + torch.outer(direction, missed) / direction.square().sum()


def damped_step(normal: Floats, gradient: Floats, damping: float) -> Floats:
    """The step from parameters with these ``J'J`` and ``J' r``, float64 ``[parameters]``."""
    own = np.diag(normal)
    least = max(float(own.mean()) * 1e-12, np.finfo(np.float64).tiny)  # of one without effect
    step = -np.linalg.solve(normal + damping * np.diag(own + least), gradient)
    return np.asarray(np.clip(step, -LARGEST_STEP, LARGEST_STEP))
