"""Forecasts: a site's output from those of the last computed steps, as a weighted sum.

Every method here is linear in what is kept, so that a forecast is one row of weights, which
depend on step numbers alone: they are data for the compiled region, not a part of its graph.
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
    """Finite differences in the place of derivatives, newest first.

    Source: TaylorSeer, arXiv 2503.06923: ``f + f' d + f'' d^2 / 2 + ...`` with
    ``d = step - kept[0]``, each derivative the difference of the one before over the distance
    of the newest two.
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
    """The polynomial through what is kept, in Chebyshev's basis over the steps in question.

    Source: Mason and Handscomb 2003, "Chebyshev polynomials"; extrapolates at the end of
    ``[-1, 1]``, where the basis is bounded by 1.
    """
    low, high = kept[-1], max(step, kept[0] + 1)
    place = (2 * np.append(kept, step) - low - high) / (high - low)
    basis = np.polynomial.chebyshev.chebvander(place, len(kept) - 1)
    return np.asarray(np.linalg.solve(basis[:-1].T, basis[-1]))


def least_squares(kept: Weights, step: float) -> Weights:
    """A polynomial of one degree less than would pass through all, fitted to them."""
    degree = max(len(kept) - 2, 0)
    basis = np.vander(np.append(kept, step) - kept[0], degree + 1, increasing=True)
    return np.asarray(basis[-1] @ np.linalg.pinv(basis[:-1]))


METHODS: dict[str, Callable[[Weights, float], Weights]] = {
    "taylor": taylor,
    "chebyshev": chebyshev,
    "least_squares": least_squares,
}


def weigh(method: str, kept: Sequence[int], step: int, order: int) -> Weights:
    """Weights of what is kept, newest first, for a forecast at a step.

    Args:
        method: A name of `METHODS`.
        kept: Steps whose outputs are kept, newest first; at least one.
        step: The step to forecast.
        order: Of the forecast; lower where fewer steps are kept. 0 is reuse.

    Raises:
        ScheduleError: An unknown method.
    """
    check_known("forecast ", method, METHODS, ScheduleError)
    weights = np.zeros(len(kept))
    taken = min(len(kept), points_of(method, order))
    weights[:taken] = METHODS[method](np.asarray(kept[:taken], np.float64), step)
    return weights


def points_of(method: str, order: int) -> int:
    """How many kept outputs a forecast reads."""
    return order + (2 if method == "least_squares" and order > 0 else 1)
