"""Calibrations and policies of random numbers, and whether two are the same."""

from dataclasses import fields

import numpy as np
import torch

from dqar_fx import Calibration, Policy
from dqar_fx.calibration.calibration import Cells
from dqar_fx.calibration.fingerprint import Fingerprint

STEPS, SITES, MAX_AGE = 12, 4, 5
PATHS = tuple(f"blocks.{i}.attn" for i in range(SITES))
MODEL = Fingerprint.of(torch.nn.Linear(2, 2))
ARRAYS = ("snr", "entropy", "change")


def random_calibration(seed=0, steps=STEPS, sites=SITES, ages=MAX_AGE, cells=0):
    """What a run might have measured; a step knows no older step than the first."""
    rng = np.random.default_rng(seed)
    change = rng.uniform(0.01, 1, (steps, sites, ages))
    for step in range(steps):
        change[step, :, step:] = np.nan
    known = np.argwhere(~np.isnan(change))
    step, site, age = rng.permutation(known)[:cells].T + np.array([[0], [0], [1]])
    unknown = np.full(len(step), np.nan)
    return Calibration(
        sites=tuple(f"blocks.{i}.attn" for i in range(sites)),
        snr=np.sort(rng.lognormal(0, 3, steps)),
        entropy=rng.uniform(0, 1, (steps, sites)),
        change=change,
        cells=Cells(step, site, age, rng.uniform(1e-4, 1e-1, len(step)), unknown, unknown),
        fingerprint=MODEL,
        samples=1,
    )


def random_policy(seed=0, steps=STEPS, sites=SITES, ages=MAX_AGE):
    """What a policy might predict."""
    calibration = random_calibration(seed, steps, sites, ages)
    predicted = np.where(np.isnan(calibration.change), np.inf, calibration.change / 10)
    return Policy(calibration.sites, predicted, {}, {}, MODEL)


class Levels:
    """A scheduler with these signal-to-noise ratios."""

    def __init__(self, snr):
        self.alphas_cumprod = torch.from_numpy(snr / (1 + snr)).flip(0)
        self.timesteps = torch.arange(len(snr)).flip(0)

    def set_timesteps(self, num_steps):
        assert num_steps == len(self.timesteps)


def assert_same(one, other):
    """Two calibrations are equal, bit for bit."""
    assert (one.sites, one.samples) == (other.sites, other.samples)
    pairs = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    pairs += [
        (getattr(one.cells, f.name), getattr(other.cells, f.name)) for f in fields(Cells)
    ]
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    assert one.fingerprint.model == other.fingerprint.model
    assert one.fingerprint.structure == other.fingerprint.structure
    assert torch.equal(one.fingerprint.values, other.fingerprint.values)
