"""Solvers of so many steps as vectors of numbers, and where to begin among them.

The numbers are the logarithms of the grid's gaps, whose sum stands; by how much the timestep
that the denoiser is told differs from that of its sample; and what is added to the weights of
DPM-Solver++ (2M) on that grid. Source: S4S (Frankel et al., 2502.17423) fits grids, told times
and weights to a teacher by gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.solver.multistep_scheduler import MultistepScheduler, dpm_solver_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.solver.noise_levels import NoiseLevels

DIFFERENCES = 3
"""Differences of earlier predictions that each step adds up."""
SHIFT = 0.1
"""Share of a gap by which a parameter of 1 shifts the timestep that the denoiser is told."""
MOST_SHIFTED = 0.45
"""Share of a gap by which it is shifted at most."""


@dataclass(frozen=True)
class SolverSpace:
    """Solvers of so many steps as vectors of numbers.

    Attributes:
        levels: The levels that the model was trained for.
        num_steps: Steps.
    """

    levels: NoiseLevels
    num_steps: int

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return 2 * self.num_steps + int(self.known.sum())

    @property
    def known(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of which differences a step has both predictions, ``[steps, differences]``."""
        return np.arange(self.num_steps)[:, None] > np.arange(DIFFERENCES)[None]

    def scheduler(self, parameters: Floats) -> MultistepScheduler:
        """The solver of a vector."""
        logarithms, shifts, added = np.split(parameters, [self.num_steps, 2 * self.num_steps])
        gaps = np.exp(logarithms - logarithms.max())
        gaps *= self.levels.last / gaps.sum()
        grid = self.levels.last - np.append(0, gaps.cumsum()[:-1])
        around = np.minimum(gaps, np.append(gaps[0], gaps[:-1]))  # so that timesteps descend
        told = grid + around * MOST_SHIFTED * np.tanh(SHIFT / MOST_SHIFTED * shifts)
        weights = np.zeros((self.num_steps, DIFFERENCES))
        weights[:, :1] = dpm_solver_weights(self.levels, grid)
        weights[self.known] += added
        told = told.clip(max=self.levels.last)
        made: MultistepScheduler = MultistepScheduler.of(self.levels, grid, weights, told)
        return made

    def starts(self) -> Iterator[Floats]:
        """DPM-Solver++ on grids even in the timestep, in the log ratio, and between."""
        even = self.levels.even_timesteps(self.num_steps)
        ratios = self.levels.even_ratios(self.num_steps)
        for share in (0.0, 0.25, 0.5, 1.0):
            grid = (1 - share) * even + share * ratios
            gaps = np.log(-np.diff(np.append(grid, 0.0)))
            yield np.append(gaps, np.zeros(self.size - self.num_steps))
