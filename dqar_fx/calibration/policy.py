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

from .calibration import columns_of, read, write

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dqar_fx.schedule.table import BranchTable

    from .calibration import Calibration
    from .fingerprint import Fingerprint

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

FEATURES = ("log10 SNR", "depth", "entropy", "log10 change", "age")
SMALLEST = 1e-9
"""Errors and changes below this are taken for this: logarithms need a floor."""
HELD_OUT = 5
"""Of so many cells, one is not learned from but predicted, to see how well that works."""
MIN_CELLS = 50


@dataclass(frozen=True, eq=False)
class Policy:
    """A network, what it predicts for every step, site and age, and how well.

    Attributes:
        sites: Module path per site.
        predicted: ``[steps, sites, ages]``: error of the denoiser's output, relative to its
            norm, that reusing one output of 1, 2, ... steps before would cause; infinite where
            there is none.
        weights: The network's, and the mean and spread of its inputs.
        held_out: On cells that it did not learn from: ``"rank correlation"`` of predicted and
            measured errors (Spearman's), and their ``"median ratio"``, the larger by the
            smaller one.
        fingerprint: The model.
    """

    sites: tuple[str, ...]
    predicted: Floats
    weights: dict[str, torch.Tensor]
    held_out: dict[str, float]
    fingerprint: Fingerprint

    @property
    def num_steps(self) -> int:
        """Steps of the trajectory."""
        return len(self.predicted)

    @property
    def max_age(self) -> int:
        """Largest age that is known."""
        return int(self.predicted.shape[2])

    def columns(self, sites: tuple[str, ...]) -> Integers:
        """Where sites stand in this policy.

        Raises:
            ScheduleError: One is not there.
        """
        return columns_of(sites, self.sites)

    @classmethod
    def fit(
        cls,
        calibration: Calibration,
        *,
        hidden: int = 32,
        num_updates: int = 800,
        seed: int = 0,
    ) -> Policy:
        """Train a policy on a calibration; a second or two on a CPU.

        Args:
            calibration: Of the model.
            hidden: Width of the two hidden layers.
            num_updates: Of the weights, each on all cells.
            seed: Of the first weights and of what is held out.

        Raises:
            ScheduleError: The calibration has too few cells.
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
        y = np.log10(np.maximum(cells.error, SMALLEST))
        held = np.random.default_rng(seed).permutation(len(x)) % HELD_OUT == 0
        network = train(x[~held], y[~held], hidden, num_updates, seed)
        return cls(
            sites=calibration.sites,
            predicted=predict_all(network, calibration),
            weights=dict(network.state_dict()),
            held_out=compare(network.predict(x[held]), y[held]),
            fingerprint=calibration.fingerprint,
        )

    def save(self, folder: str | Path, table: BranchTable | None = None) -> None:
        """Write ``policy.safetensors`` and ``policy.json``; a table to ``table.json``."""
        arrays = {"predicted": self.predicted}
        arrays |= {f"weights.{name}": value.numpy() for name, value in self.weights.items()}
        facts = {"sites": self.sites, "held_out": self.held_out, "features": FEATURES}
        write(folder, "policy", arrays, facts, self.fingerprint)
        if table is not None:
            table.save(f"{folder}/table.json")

    @classmethod
    def load(cls, folder: str | Path) -> Policy:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing, damaged, or something else.
        """
        arrays, facts, fingerprint = read(folder, "policy")
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


class Network(nn.Module):
    """Predicts the logarithm of an error from `FEATURES`.

    Args:
        centre: Mean of the inputs.
        spread: Standard deviation of the inputs.
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
        """``[cells]`` from ``[cells, features]``."""
        x = (x - self.centre) / self.spread
        x = nn.functional.silu(self.second(nn.functional.silu(self.first(x))))
        result: torch.Tensor = self.last(x).squeeze(-1)
        return result

    @torch.no_grad()
    def predict(self, x: Floats) -> Floats:
        """The same on arrays."""
        return np.asarray(self(torch.from_numpy(x)).numpy())


def features(
    calibration: Calibration, step: Integers, site: Integers, age: Integers
) -> Floats:
    """``[cells, features]`` of cells, in the order of `FEATURES`."""
    snr = np.clip(calibration.snr[step], SMALLEST, 1 / SMALLEST)
    change = np.maximum(calibration.change[step, site, age - 1], SMALLEST)
    depth = site / max(len(calibration.sites) - 1, 1)
    entropy = np.nan_to_num(calibration.entropy[step, site])  # sites that are no attention
    return np.stack([np.log10(snr), depth, entropy, np.log10(change), age], axis=1)


def train(x: Floats, y: Floats, hidden: int, num_updates: int, seed: int) -> Network:
    """A network that has learned ``y`` from ``x`` by least squares."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        torch.default_generator.manual_seed(seed)  # no other device's
        network = Network(x.mean(axis=0), x.std(axis=0) + SMALLEST, hidden)
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


def predict_all(network: Network, calibration: Calibration) -> Floats:
    """``[steps, sites, ages]``: the error of every reuse; infinite where there is none."""
    shape = calibration.change.shape
    predicted = np.full(shape, np.inf)
    step, site, age = np.nonzero(~np.isnan(calibration.change))
    x = features(calibration, step, site, age + 1)
    predicted[step, site, age] = 10 ** network.predict(x)
    return predicted


def compare(predicted: Floats, measured: Floats) -> dict[str, float]:
    """How well logarithms of errors are predicted."""
    ranks = [rank(values) for values in (predicted, measured)]
    return {
        "rank correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "median ratio": float(10 ** np.median(np.abs(predicted - measured))),
    }


def rank(values: Floats) -> Floats:
    """Ranks from 0 on; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    return np.asarray(middle[place], np.float64)
