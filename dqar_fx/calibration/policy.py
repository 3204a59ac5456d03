"""A learned policy: a small network that predicts the error which a reuse would cause.

Its inputs are what is known before a trajectory runs: the noise level, the depth of the site,
its attention entropy, how much its output has changed since it was kept, and for how long. It
learns from the reuses that a calibration tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import check_at_least

from .calibration import CalibratedSites, read_measurement, write_measurement

if TYPE_CHECKING:
    from pathlib import Path

    from dqar_fx.schedule.table import BranchTable

    from .calibration import Calibration, Floats, Integers
    from .fingerprint import Fingerprint

FEATURES = ("log10 SNR", "depth", "entropy", "log10 change", "age")
MIN_ERROR = 1e-9
"""Smaller errors and changes are raised to this: logarithms need a floor."""
HELD_OUT = 5
"""One of so many cells is held out of the training, to see how well it is predicted."""
MIN_CELLS = 50
"""Fewest cells that a policy can learn from."""


@dataclass(frozen=True, eq=False)
class Policy(CalibratedSites):
    """A network, what it predicts for every step, site and age, and how well.

    Attributes:
        sites: Module path per site.
        predicted: float64 ``[steps, sites, ages]``: error of the denoiser's output, relative
            to its norm, that reusing one output of 1, 2, ... steps before would cause;
            infinite where there is no such step.
        weights: The state of the network, with the mean and the standard deviation of its
            inputs.
        held_out: How well it predicts cells that were held out of the training: Spearman's
            ``"rank correlation"`` of predicted and measured errors, and the ``"median ratio"``
            of the larger to the smaller one.
        fingerprint: Identifies the model.
    """

    predicted: Floats
    weights: dict[str, torch.Tensor]
    held_out: dict[str, float]
    fingerprint: Fingerprint

    @property
    def num_steps(self) -> int:
        """Number of steps of the trajectory."""
        return len(self.predicted)

    @property
    def max_age(self) -> int:
        """Largest age, in steps, that it knows."""
        return int(self.predicted.shape[2])

    @classmethod
    def fit(
        cls,
        calibration: Calibration,
        *,
        hidden: int = 32,
        num_updates: int = 800,
        seed: int = 0,
    ) -> Policy:
        """Train a policy on a calibration, which takes a second or two on a CPU.

        Args:
            calibration: What was measured of the model.
            hidden: Width of the two hidden layers.
            num_updates: Updates of the weights, each on all cells.
            seed: Seed of the initial weights and of the choice of held-out cells.

        Raises:
            ScheduleError: The calibration has too few cells, or errors that are not finite.
        """
        check_at_least(1, hidden=hidden, num_updates=num_updates)
        cells = calibration.cells
        if len(cells) < MIN_CELLS:
            raise ScheduleError(
                f"a policy needs at least {MIN_CELLS} cells to learn from, found "
                f"{len(cells)}. Calibrate with cells_per_step=12 or more"
            )
        if not np.isfinite(cells.error).all():
            raise ScheduleError(
                "measured errors are NaN or infinite: look at what the model gives in its "
                "own dtype"
            )
        x = features(calibration, cells.step, cells.site, cells.age)
        y = np.log10(np.maximum(cells.error, MIN_ERROR))
        is_held_out = np.random.default_rng(seed).permutation(len(x)) % HELD_OUT == 0
        network = train(x[~is_held_out], y[~is_held_out], hidden, num_updates, seed)
        return cls(
            sites=calibration.sites,
            predicted=predict_all(network, calibration),
            weights=dict(network.state_dict()),
            held_out=score_predictions(network.predict(x[is_held_out]), y[is_held_out]),
            fingerprint=calibration.fingerprint,
        )

    def save(self, folder: str | Path, table: BranchTable | None = None) -> None:
        """Write ``policy.safetensors`` and ``policy.json``, and a table to ``table.json``."""
        arrays = {"predicted": self.predicted}
        arrays |= {f"weights.{name}": value.numpy() for name, value in self.weights.items()}
        facts = {"sites": self.sites, "held_out": self.held_out, "features": FEATURES}
        write_measurement(folder, "policy", arrays, facts, self.fingerprint)
        if table is not None:
            table.save(f"{folder}/table.json")

    @classmethod
    def load(cls, folder: str | Path) -> Policy:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing or damaged, or hold something else.
        """
        arrays, facts, fingerprint = read_measurement(folder, "policy")
        try:
            return cls(
                sites=tuple(facts["sites"]),
                predicted=arrays["predicted"],
                weights={
                    name.removeprefix("weights."): torch.from_numpy(value)
                    for name, value in arrays.items()
                    if name.startswith("weights.")
                },
                held_out=facts["held_out"],
                fingerprint=fingerprint,
            )
        except (KeyError, TypeError) as error:
            raise ScheduleError(f"{folder}: the policy lacks {error}") from None


class ErrorNetwork(nn.Module):
    """Predicts the logarithm of an error from `FEATURES`.

    Args:
        centre: float64 ``[features]``: mean of the inputs.
        spread: float64 ``[features]``: standard deviation of the inputs.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, centre: Floats, spread: Floats, hidden: int) -> None:
        super().__init__()
        self.centre = nn.Buffer(torch.from_numpy(centre))
        self.spread = nn.Buffer(torch.from_numpy(spread))
        sizes = (len(FEATURES), hidden, hidden, 1)
        layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
        self.first, self.second, self.last = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features, float64 ``[cells, features]``, to logarithms, float64 ``[cells]``."""
        x = (x - self.centre) / self.spread
        x = nn.functional.silu(self.second(nn.functional.silu(self.first(x))))
        result: torch.Tensor = self.last(x).squeeze(-1)
        return result

    @torch.no_grad()
    def predict(self, x: Floats) -> Floats:
        """Do what ``forward`` does, on arrays."""
        return np.asarray(self(torch.from_numpy(x)).numpy())


def features(
    calibration: Calibration, step: Integers, site: Integers, age: Integers
) -> Floats:
    """The inputs of the network for cells: float64 ``[cells, features]``."""
    snr = np.clip(calibration.snr[step], MIN_ERROR, 1 / MIN_ERROR)
    change = np.maximum(calibration.change[step, site, age - 1], MIN_ERROR)
    depth = site / max(len(calibration.sites) - 1, 1)
    entropy = np.nan_to_num(calibration.entropy[step, site])  # sites that are no attention
    return np.stack([np.log10(snr), depth, entropy, np.log10(change), age], axis=1)


def train(x: Floats, y: Floats, hidden: int, num_updates: int, seed: int) -> ErrorNetwork:
    """Train a network by least squares of logarithms of errors ``y`` at inputs ``x``."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        torch.default_generator.manual_seed(seed)  # no other device's
        network = ErrorNetwork(x.mean(axis=0), x.std(axis=0) + MIN_ERROR, hidden)
        nn.init.constant_(network.last.bias, y.mean())
        inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-3)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_updates)
        for _ in range(num_updates):
            optimiser.zero_grad()
            nn.functional.mse_loss(network(inputs), targets).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
            optimiser.step()
            decay.step()
    return network.requires_grad_(False)


def predict_all(network: ErrorNetwork, calibration: Calibration) -> Floats:
    """Predict the error of every reuse: float64 ``[steps, sites, ages]``, else infinity."""
    shape = calibration.change.shape
    predicted = np.full(shape, np.inf)
    step, site, age = np.nonzero(~np.isnan(calibration.change))
    x = features(calibration, step, site, age + 1)
    predicted[step, site, age] = 10 ** network.predict(x)
    return predicted


def score_predictions(predicted: Floats, measured: Floats) -> dict[str, float]:
    """Measure how well logarithms of errors are predicted, see `Policy.held_out`."""
    ranks = [rank(values) for values in (predicted, measured)]
    return {
        "rank correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "median ratio": float(10 ** np.median(np.abs(predicted - measured))),
    }


def rank(values: Floats) -> Floats:
    """Rank values from 0 on; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    return np.asarray(middle[place], np.float64)
