"""Errors of kept keys and values beside those of kept outputs, and what they say.

Every reuse was tried twice at the same step, site and age: with the kept output, and with kept
keys and values under a fresh query. So the two errors of a cell make a pair.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.errors import InputError
from dqar_fx import Calibration

THIRDS = ("early", "middle", "late")
CLEAR = 2 / 3
"""Share of pairs from which on one way is called better, and not just ahead."""


@dataclass(frozen=True)
class Pairs:
    """The two errors of every reuse that was tried; all arrays are ``[pairs]``.

    Attributes:
        where: Whose error it is.
        output: Error with the kept output.
        kv: Error with kept keys and values.
        age: Steps since they were kept.
        third: 0, 1, 2: early, middle, late steps.
    """

    where: str
    output: NDArray[np.float64]
    kv: NDArray[np.float64]
    age: NDArray[np.int64]
    third: NDArray[np.int64]

    @property
    def both(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The errors with the output, and with keys and values."""
        return self.output, self.kv

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Error with keys and values by that with the output."""
        return self.kv / self.output

    @property
    def share_better(self) -> float:
        """Share of pairs in which keys and values have the smaller error."""
        return float((self.ratio < 1).mean())

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratio."""
        low, median, high = np.quantile(self.ratio, [0.25, 0.5, 0.75])
        return float(low), float(median), float(high)

    @property
    def late_by_early(self) -> float:
        """Median error with the output at the last steps by that at the first ones."""
        first, last = (
            np.median(self.output[self.third == third])
            for third in (self.third.min(), self.third.max())
        )
        return float(last / first)


def read_pairs(calibration: Calibration) -> tuple[Pairs, Pairs]:
    """The pairs of a calibration: of the sites' outputs, and of the denoiser's.

    Raises:
        InputError: Keys and values were not tried.
    """
    cells = calibration.cells
    change = calibration.change[cells.step, cells.site, cells.age - 1]
    errors = np.stack([change, cells.kv_change, cells.error, cells.kv_error])
    tried = np.isfinite(errors).all(axis=0) & (errors > 0).all(axis=0)
    if not tried.any():
        raise InputError(
            "the calibration has no reuse of keys and values to compare: it was made without "
            "compare_kv=True, or no site of this pipeline computes its own"
        )
    change, kv_change, error, kv_error = errors[:, tried]
    age, third = cells.age[tried], cells.step[tried] * len(THIRDS) // calibration.num_steps
    return (
        Pairs("attention's own output", change, kv_change, age, third),
        Pairs("denoiser's output", error, kv_error, age, third),
    )


def judge(pairs: Pairs) -> str:
    """What the pairs say of keys and values, in words."""
    share, median = pairs.share_better, pairs.quartiles[1]
    size = f"median {abs(median - 1):.0%} {'lower' if median < 1 else 'higher'}"
    if share >= CLEAR:
        return f"a smaller error in {share:.0%} of reuses ({size})"
    if share <= 1 - CLEAR:
        return f"a larger error in {1 - share:.0%} of reuses ({size})"
    return f"no clear difference: a smaller error in {share:.0%} of reuses ({size})"


def make_title(denoiser: Pairs) -> str:
    """The finding, whichever way it falls."""
    verdict = "the mismatch that the report warns of makes no difference"
    if denoiser.share_better <= 1 - CLEAR:
        verdict = "the mismatch that the report warns of shows"
    elif denoiser.share_better >= CLEAR:
        verdict = "the mismatch that the report warns of does not show"
    return (
        f"Keeping keys and values instead of outputs gives {judge(denoiser)} at equal age: "
        f"{verdict}"
    )
