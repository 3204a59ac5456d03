"""What probes measure over all batches and streams, and the calibration that this makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.errors import ScheduleError

from .calibration import Calibration, Cells
from .fingerprint import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from .calibration import Floats
    from .site_reuse import TensorSequence

    WeightedArrays = list[tuple[int, Floats]]


class AttentionRecord:
    """Collects the measurements of probes, and chooses the reuses that they try.

    Args:
        num_steps: Steps of the trajectory.
        max_age: Largest age, in steps.
        cells_per_step: How many reuses to try at each step.
        rng: Chooses these reuses.
        report_step: Called after each step of the first stream.

    Attributes:
        sites: Module path per site.
        weight: Inputs of the batch that runs, by which its measurements count.
    """

    def __init__(
        self,
        num_steps: int,
        max_age: int,
        cells_per_step: int,
        rng: np.random.Generator,
        report_step: Callable[[], object],
    ) -> None:
        self.num_steps, self.max_age = num_steps, max_age
        self.sites: tuple[str, ...] = ()
        self.weight = 1
        self._cells_per_step, self._rng, self._report_step = cells_per_step, rng, report_step
        self._entropy: list[WeightedArrays] = [[] for _ in range(num_steps)]
        self._change: list[WeightedArrays] = [[] for _ in range(num_steps)]
        self._cells: list[tuple[float, ...]] = []
        self._first_stream: object = None

    def add_step(
        self,
        step: int,
        stream: object,
        entropy: TensorSequence,
        change: Sequence[Mapping[int, torch.Tensor]],
    ) -> None:
        """Add what a step gave: entropies by site, changes of outputs by site and age."""
        row = np.full((len(change), self.max_age), np.nan)
        for age in change[0]:
            row[:, age - 1] = torch.stack([ages[age] for ages in change]).cpu()
        of_sites = torch.stack(list(entropy)).cpu().double().numpy()
        self._entropy[step].append((self.weight, of_sites))
        self._change[step].append((self.weight, row))
        self._first_stream = self._first_stream or stream
        if stream == self._first_stream:
            self._report_step()

    def add_cell(self, step: int, site: int, age: int, errors: tuple[float, ...]) -> None:
        """Add what a reuse did; ``errors`` are in the order in which `Cells` has them."""
        self._cells.append((step, site, age, *errors))

    def choose_cells(self, num_sites: int, ages: Sequence[int]) -> list[tuple[int, int]]:
        """Draw the ``(site, age)`` of the reuses to try at a step, of these ages."""
        if not ages:
            return []
        count = min(self._cells_per_step, num_sites)
        sites = self._rng.choice(num_sites, count, replace=False)
        drawn = np.asarray(ages)[self._rng.integers(0, len(ages), count)]
        return list(zip(sites.tolist(), drawn.tolist(), strict=True))

    def finish(self, snr: Floats, model: nn.Module, samples: int) -> Calibration:
        """Average what was measured; ``snr`` of the latent is float64 ``[steps]``.

        Raises:
            ScheduleError: The denoiser was not called at every step, or no step could be
                compared with another.
        """
        missing = [step for step, rows in enumerate(self._entropy) if not rows]
        if missing or len(snr) != self.num_steps:
            raise ScheduleError(
                f"the pipeline called its denoiser at {self.num_steps - len(missing)} of "
                f"{self.num_steps} steps, and its scheduler has {len(snr)}. Expected one call "
                "or several per step; give num_steps as the number of timesteps"
            )
        change = np.stack([weighted_mean(rows) for rows in self._change])
        if self.num_steps > 1 and np.isnan(change).all():
            raise ScheduleError(
                "no step could be compared with an earlier one: each call looked like a new "
                "trajectory. Expected one latent for all guidance branches of a step, or "
                "calls inside cache_context(name, step_index=...)"
            )
        columns = np.array(self._cells, np.float64).reshape(-1, 6).T
        step, site, age = columns[:3].astype(np.int64)
        return Calibration(
            sites=self.sites,
            snr=snr,
            entropy=np.stack([weighted_mean(rows) for rows in self._entropy]),
            change=change,
            cells=Cells(step, site, age, *columns[3:]),
            fingerprint=Fingerprint.of(model),
            samples=samples,
        )


def weighted_mean(rows: WeightedArrays) -> Floats:
    """The mean of all known values, each array by its weight; NaN where none is known."""
    weights = np.array([weight * ~np.isnan(row) for weight, row in rows], np.float64)
    values = np.array([np.nan_to_num(row) for _, row in rows])
    total = weights.sum(axis=0)
    summed = (weights * values).sum(axis=0)
    return np.asarray(np.where(total > 0, summed / np.maximum(total, 1), np.nan))
