"""Forecasts: a site's output as a weighted sum of its outputs at the last computed steps.

Every method here is linear in the kept outputs, so a forecast is one row of weights. They
depend on step numbers alone, and are an input of the compiled region, not part of its graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import ScheduleError, check_known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Weights = NDArray[np.float64]

MAX_ORDER = 3


def taylor(kept: Weights, step: float) -> Weights:
    """Weigh kept outputs by a Taylor series, with finite differences for derivatives.

    The forecast is ``f + f' d + f'' d^2 / 2 + ...`` with ``d = step - kept[0]``. Each
    derivative is the difference of the two newest values of the one below it, divided by the
    distance of their steps.

    Args:
        kept: Steps whose outputs are kept, newest first, float64 ``[points]``.
        step: The step to forecast.

    Returns:
        One weight per kept output, float64 ``[points]``.

    Source:
        TaylorSeer, arXiv 2503.06923.
    """
    rows = np.eye(len(kept))
    total, scale = rows[0].copy(), 1.0
    for power in range(1, len(kept)):
        distances = kept[: len(rows) - 1] - kept[1 : len(rows)]
        rows = (rows[:-1] - rows[1:]) / distances[:, None]
        scale *= (step - kept[0]) / power
        total += scale * rows[0]
    return np.asarray(total)


def chebyshev(kept: Weights, step: float) -> Weights:
    """Weigh kept outputs by the polynomial through all of them, in Chebyshev's basis.

    The steps are mapped to ``[-1, 1]`` with the forecast at its end, where the basis is
    bounded by 1. Arguments and result are as for `taylor`.

    Source:
        Mason and Handscomb 2003, "Chebyshev polynomials".
    """
    low, high = kept[-1], max(step, kept[0] + 1)
    place = (2 * np.append(kept, step) - low - high) / (high - low)
    basis = np.polynomial.chebyshev.chebvander(place, len(kept) - 1)
    return np.asarray(np.linalg.solve(basis[:-1].T, basis[-1]))


def least_squares(kept: Weights, step: float) -> Weights:
    """Weigh kept outputs by a fitted polynomial, one degree below that through all of them.

    Arguments and result are as for `taylor`.
    """
    degree = max(len(kept) - 2, 0)
    basis = np.vander(np.append(kept, step) - kept[0], degree + 1, increasing=True)
    return np.asarray(basis[-1] @ np.linalg.pinv(basis[:-1]))


METHODS: dict[str, Callable[[Weights, float], Weights]] = {
    "taylor": taylor,
    "chebyshev": chebyshev,
    "least_squares": least_squares,
}


def weigh(method: str, kept: Sequence[int], step: int, order: int) -> Weights:
    """Weigh the kept outputs for the forecast at a step.

    Args:
        method: A name of `METHODS`.
        kept: Steps whose outputs are kept, newest first; at least one.
        step: The step to forecast.
        order: Order of the forecast; it falls where fewer steps are kept. 0 is reuse.

    Returns:
        One weight per kept output, float64 ``[points]``; 0 for those that are not read.

    Raises:
        ScheduleError: The method is unknown.
    """
    check_known("forecast ", method, METHODS, ScheduleError)
    weights = np.zeros(len(kept))
    taken = min(len(kept), points_of(method, order))
    weights[:taken] = METHODS[method](np.asarray(kept[:taken], np.float64), step)
    return weights


def points_of(method: str, order: int) -> int:
    """Return how many kept outputs a forecast of this order reads, at most."""
    return order + (2 if method == "least_squares" and order > 0 else 1)
