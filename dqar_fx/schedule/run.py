"""What is known of a run before it begins: how many rows its table has, and what each is.

A row is one evaluation of the denoiser per stream. First-order solvers evaluate it once per
step, so that rows are steps; Heun's and others of second order evaluate it twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


PRK_CALLS = 4
"""Calls of a Runge-Kutta step of PNDM."""


@dataclass(frozen=True)
class RunShape:
    """A run, as far as it is known before it begins.

    Attributes:
        num_rows: Evaluations of the denoiser per stream: rows of the table.
        calls: Which call of its solver's step each row is, from 0 on. It is empty where each
            step calls once, or where that is not known.
        noise: Signal-to-noise ratio of the latent at each row; empty where it is not known.
    """

    num_rows: int
    calls: tuple[int, ...] = ()
    noise: tuple[float, ...] = ()

    @classmethod
    def of(cls, num_rows: int, calls: Sequence[int], noise: ArrayLike | None) -> RunShape:
        """Read what `Schedule.for_run` is given.

        Raises:
            ScheduleError: Calls are no integers from 0 on, ratios of noise no numbers from 0
                on, or there is not one of them per row.
        """
        ordinals = np.asarray(calls)
        if ordinals.size and (ordinals.dtype.kind not in "iu" or ordinals.min() < 0):
            raise ScheduleError(
                f"calls must be integers from 0 on, the place of each row among the calls of "
                f"its solver's step; found {calls!r}"
            )
        known = read_noise(noise)
        for name, given in (("calls", ordinals), ("noise", known)):
            if np.size(given) and np.shape(given) != (num_rows,):
                raise ScheduleError(
                    f"{name} of a run need one value per row, {num_rows}, but have shape "
                    f"{list(np.shape(given))}"
                )
        later = tuple(map(int, ordinals)) if ordinals.any() else ()
        return cls(int(num_rows), later, known)

    @property
    def num_solver_steps(self) -> int:
        """Steps of the solver: fewer than rows where one of them calls the denoiser again."""
        return count_solver_steps(self.num_rows, self.calls)

    def call_of(self, row: int) -> int:
        """Return which call of its solver's step a row is; 0 where that is not known."""
        return self.calls[row] if self.calls else 0


def read_noise(noise: ArrayLike | None) -> tuple[float, ...]:
    """Return signal-to-noise ratios as a tuple; None gives an empty one.

    Raises:
        ScheduleError: They are not a row of numbers from 0 on.
    """
    if noise is None:
        return ()
    try:
        ratios = np.asarray(noise, np.float64)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"noise needs signal-to-noise ratios: {error}") from None
    if ratios.ndim != 1 or not (ratios >= 0).all():
        raise ScheduleError(
            f"noise needs one signal-to-noise ratio per row, each 0 or more, found {noise!r}"
        )
    return tuple(ratios.tolist())


def calls_as_set(scheduler: Any) -> tuple[int, ...]:
    """Tell which call of its solver's step each timestep of a diffusers scheduler is.

    Solvers of second order, such as `HeunDiscreteScheduler`, call the denoiser twice per step
    (0, 1, 0, 1, ...) and once at the last one (0). Those of first order and multistep solvers
    call once: all are 0. PNDM begins with three steps of four calls, or, where it skips these,
    with one of two. The timesteps must be set already.

    Raises:
        ScheduleError: The scheduler has no timesteps.
    """
    if getattr(scheduler, "timesteps", None) is None:
        raise ScheduleError(f"{type(scheduler).__name__} has no timesteps")
    num_rows = len(scheduler.timesteps)
    if hasattr(scheduler, "prk_timesteps"):
        first = len(scheduler.prk_timesteps)
        begin = [row % PRK_CALLS for row in range(first)] or [0, 1]
        return (*begin, *[0] * num_rows)[:num_rows]
    order = int(getattr(scheduler, "order", 1))
    return tuple(row % order for row in range(num_rows))


def count_solver_steps(num_rows: int, calls: Sequence[int]) -> int:
    """Count the steps of a solver, of which each has one first call."""
    return list(calls).count(0) if calls else num_rows


def name_rows(num_rows: int, num_solver_steps: int | None) -> str:
    """Name the rows of a run: steps, or evaluations where a step has several of them."""
    kind, more = kind_of_rows(num_rows, num_solver_steps)
    return f"{num_rows} {kind}{more}"


def kind_of_rows(num_rows: int | None, num_solver_steps: int | None) -> tuple[str, str]:
    """What the rows of a run are called, and what is said of its steps beside that."""
    if num_solver_steps in (None, num_rows):
        return "steps", ""
    return "evaluations", f" ({num_solver_steps} steps of the solver)"


def find_nearest_rows(
    run: RunShape, num_rows: int, noise: tuple[float, ...]
) -> NDArray[np.int64]:
    """Find, for each row of a run, the row that is nearest to it among others.

    Nearest is that of the nearest logarithm of the signal-to-noise ratio, where both are
    known. Of several (a second-order solver has pairs of equal noise), and where noise is not
    known, it is that of the nearest relative position; then the earlier one.

    Args:
        run: The run whose rows are looked up.
        num_rows: How many other rows there are.
        noise: Their signal-to-noise ratios, one per row; empty where they are not known.

    Returns:
        int64 ``[run.num_rows]``, from 0 to ``num_rows - 1``.
    """
    place, known_place = np.linspace(0, 1, run.num_rows), np.linspace(0, 1, num_rows)
    apart = np.abs(place[:, None] - known_place[None, :])
    if noise and run.noise:
        level, known_level = log_of_noise(run.noise), log_of_noise(noise)
        distance = np.abs(level[:, None] - known_level[None, :])
        is_nearest = distance <= distance.min(axis=1, keepdims=True) + TIE
        apart = np.where(is_nearest, apart, np.inf)
    return np.asarray((apart - apart.min(axis=1, keepdims=True) <= TIE).argmax(axis=1))


TIE = 1e-9
"""Distances that differ by less are equal: they differ by rounding alone."""
LARGEST_LOG = 100.0
"""Logarithm that stands for a ratio without noise; its negative for one without signal."""


def log_of_noise(noise: tuple[float, ...]) -> NDArray[np.float64]:
    """Return natural logarithms of ratios, float64 ``[rows]``, all of them finite."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(noise))
    return np.asarray(np.clip(logs, -LARGEST_LOG, LARGEST_LOG))
