"""Forecasts: a site's output as a weighted sum of its outputs at the last computed steps.

Every method here is linear in the kept outputs, so a forecast is one row of weights. They
depend on step numbers alone, and are an input of the compiled region, not part of its graph.
"""

from __future__ import annotations

from math import factorial
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import ScheduleError, check_known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Weights = NDArray[np.float64]

MAX_ORDER = 3
TRAVEL = 3.0
"""How far a site's output moves in a trajectory, relative to its size: number of steps times
the change per step. It was 2.9 with 20 steps of DPM-Solver++, 3.1 with 50 of DDIM, both of the
reference pipeline."""
NEGLIGIBLE = 2.0**-8
"""A rounding error below this, relative to what is kept, is not worth damping."""


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


def damp(weights: Weights, kept: Weights, order: int, damping: float) -> Weights:
    """Shrink the weights of a forecast, so that it amplifies less noise of what it reads.

    Of all weights that add up to 1, these have the least sum of the noise that they amplify
    and of what they change in the forecast of a smooth curve::

        min_w  noise |w|^2 + sum_k ((w - weights) . x^k / k!)^2,   k = 1 ... order
        noise = (damping / distance)^2,   x = (kept - kept[0]) / distance

    where ``distance`` is that between kept steps. The curve is one whose derivatives of all
    orders are as large as its change from one kept step to the next. In the basis of singular
    vectors each component shrinks by ``s^2 / (s^2 + noise)``: towards the mean of what is
    kept, which no weights beat where all is noise.

    Args:
        weights: Weights that add up to 1, float64 ``[points]``.
        kept: Steps whose outputs they weigh, newest first, float64 ``[points]``.
        order: Order of the forecast.
        damping: Noise of what is kept, by its change from one step to the next. 0 returns
            the weights as they are.

    Returns:
        float64 ``[points]``, which add up to 1.

    Source:
        Hoerl and Kennard 1970, "Ridge regression: biased estimation for nonorthogonal
        problems".
    """
    if not (damping and order and len(kept) > 1):
        return weights
    distance = (kept[0] - kept[-1]) / (len(kept) - 1)
    places, mean = (kept - kept[0]) / distance, 1 / len(kept)
    curve = np.stack([places**k / factorial(k) for k in range(1, order + 1)])
    _, size, vectors = np.linalg.svd(curve - curve.mean(axis=1, keepdims=True), False)
    share = size**2 / (size**2 + (damping / distance) ** 2)
    return np.asarray(mean + vectors.T @ (share * (vectors @ (weights - mean))))


def amplify(weights: Sequence[float] | Weights) -> float:
    """By how much a forecast amplifies noise that is independent in each output that it reads.

    It is the root of the sum of squares of its weights.
    """
    return float(np.linalg.norm(weights))


def damping_for(rounding: float, num_steps: int) -> float:
    """Work out how much to damp what is kept with a rounding error.

    Args:
        rounding: Root mean square of the error, relative to what is kept.
        num_steps: Steps of the trajectory.

    Returns:
        The error by the change per step, see `TRAVEL`; 0 where the error is `NEGLIGIBLE`.
    """
    return 0.0 if rounding < NEGLIGIBLE else rounding * num_steps / TRAVEL


def weigh(
    method: str, kept: Sequence[int], step: int, order: int, damping: float = 0.0
) -> Weights:
    """Weigh the kept outputs for the forecast at a step.

    Args:
        method: A name of `METHODS`.
        kept: Steps whose outputs are kept, newest first; at least one.
        step: The step to forecast.
        order: Order of the forecast; it falls where fewer steps are kept. 0 is reuse.
        damping: How noisy what is kept is, see `damp`.

    Returns:
        One weight per kept output, float64 ``[points]``; 0 for those that are not read.

    Raises:
        ScheduleError: The method is unknown.
    """
    check_known("forecast ", method, METHODS, ScheduleError)
    weights = np.zeros(len(kept))
    taken = min(len(kept), points_of(method, order))
    steps = np.asarray(kept[:taken], np.float64)
    weights[:taken] = damp(METHODS[method](steps, step), steps, order, damping)
    return weights


def points_of(method: str, order: int) -> int:
    """Return how many kept outputs a forecast of this order reads, at most."""
    return order + (2 if method == "least_squares" and order > 0 else 1)
