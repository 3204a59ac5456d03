"""What an optimiser knows of a model: errors of sites, their effects, and costs of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.calibration.calibration import read_measurement, write_measurement
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.forecast import weigh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.calibration.fingerprint import Fingerprint


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of one model in one pipeline.

    Attributes:
        sites: Module path per site.
        kinds: Kind per site.
        site_bytes: Bytes of one kept value per site, of one stream.
        gram: float64 ``[sites, steps, steps]``: inner products of a site's values at two
            steps.
        sensitivity: float64 ``[steps, sites]``: relative error of the denoiser's output,
            divided by the relative error of the site that causes it.
        gain: float64 ``[steps]``: error of the pictures (root mean square, values in [0, 1]),
            divided by the relative error of the denoiser's output at a step.
        step_ms: Milliseconds of one step that computes everything.
        saved_ms: float64 ``[sites]``: milliseconds that not computing a site saves.
        fingerprint: Identifies the model.
        identity: Differs for another model, scheduler or job.
        guided_ms: float64 ``[2]``: ``step_ms`` where streams are told apart: of a step that
            calls both, and of one that leaves the unconditional one out. It is empty where
            there is no guidance to search.
        guided_saved_ms: float64 ``[2, sites]``: ``saved_ms`` of the same steps.
        noise: float64 ``[steps]``: signal-to-noise ratio of the latent; empty where it is not
            known.
    """

    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    site_bytes: tuple[int, ...]
    gram: Floats
    sensitivity: Floats
    gain: Floats
    step_ms: float
    saved_ms: Floats
    fingerprint: Fingerprint
    identity: str = ""
    guided_ms: Floats = field(default_factory=lambda: np.zeros(0))
    guided_saved_ms: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    noise: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def num_steps(self) -> int:
        """Number of steps of the trajectory."""
        return int(self.gram.shape[1])

    def site_errors(self, step: int, kept: Sequence[int], order: int, method: str) -> Floats:
        """Relative error of each site's forecast: float64 ``[sites]``.

        Args:
            step: The step to forecast.
            kept: Steps whose values are kept, newest first.
            order: Order of the forecast; 0 is reuse.
            method: How to forecast.
        """
        weights = np.array([1.0, *(-weigh(method, kept, step, order))])
        places = np.array([step, *kept])
        block = self.gram[:, places[:, None], places[None, :]]
        squares = np.einsum("i,sij,j->s", weights, block, weights)
        right = np.maximum(self.gram[:, step, step], np.finfo(np.float64).tiny)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0) / right))

    def errors(self, step: int, kept: Sequence[int], order: int, method: str) -> Floats:
        """Error of the pictures that each site's forecast would cause: float64 ``[sites]``.

        The arguments are those of `site_errors`.
        """
        local = self.site_errors(step, kept, order, method)
        return np.asarray(self.gain[step] * self.sensitivity[step] * local)

    def save(self, folder: str | Path) -> None:
        """Write ``measured.safetensors`` and ``measured.json`` to a folder."""
        names = ("gram", "sensitivity", "gain", "saved_ms", "guided_ms", "guided_saved_ms")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in (*names, "noise")}
        facts = {
            "sites": self.sites,
            "kinds": self.kinds,
            "site_bytes": self.site_bytes,
            "step_ms": self.step_ms,
            "identity": self.identity,
        }
        write_measurement(folder, "measured", arrays, facts, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> Measurements:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing or damaged, or hold something else.
        """
        arrays, facts, fingerprint = read_measurement(folder, "measured")
        try:
            loaded = cls(
                sites=tuple(facts["sites"]),
                kinds=tuple(facts["kinds"]),
                site_bytes=tuple(facts["site_bytes"]),
                step_ms=float(facts["step_ms"]),
                identity=facts["identity"],
                fingerprint=fingerprint,
                **arrays,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ScheduleError(f"{folder}: what was measured lacks {error}") from None
        steps, sites = loaded.num_steps, len(loaded.sites)
        if len(loaded.noise) not in (0, steps):
            raise ScheduleError(
                f"{folder}: what was measured is damaged: {steps} steps, but "
                f"{len(loaded.noise)} noise levels"
            )
        if loaded.sensitivity.shape != (steps, sites) or len(loaded.gain) != steps:
            raise ScheduleError(
                f"{folder}: what was measured is damaged: {sites} sites and {steps} steps, "
                f"but sensitivities of shape {list(loaded.sensitivity.shape)}"
            )
        return loaded


def fit_sensitivity(
    reuses: Sequence[tuple[int, int, float, float]], num_steps: int, num_sites: int
) -> Floats:
    """Fit a factor per step times a factor per site to the reuses that were tried.

    The logarithms are fitted by least squares; factors that little is known of are drawn
    towards the mean.

    Args:
        reuses: Per reuse the step, the site, the relative error of the denoiser's output, and
            that of the site.
        num_steps: Steps of the trajectory.
        num_sites: Sites of the model.

    Returns:
        float64 ``[steps, sites]``, see `Measurements.sensitivity`.
    """
    cells = [(t, s, out / own) for t, s, out, own in reuses if out > 0 and own > 0]
    if not cells:
        return np.ones((num_steps, num_sites))
    logs = np.log([ratio for *_, ratio in cells])
    rows = np.zeros((len(cells), num_steps + num_sites))
    for row, (step, site, _) in enumerate(cells):
        rows[row, step] = rows[row, num_steps + site] = 1.0
    mean = logs.mean()
    normal = rows.T @ rows + 0.3 * np.eye(rows.shape[1])
    factors = np.linalg.solve(normal, rows.T @ (logs - mean))
    return np.asarray(np.exp(mean + factors[:num_steps, None] + factors[None, num_steps:]))


def spread_gain(known: dict[int, float], num_steps: int) -> Floats:
    """Interpolate gains, linearly between their logarithms: float64 ``[steps]``."""
    steps = sorted(step for step, gain in known.items() if gain > 0)
    if not steps:
        return np.ones(num_steps)
    logs = np.log([known[step] for step in steps])
    return np.asarray(np.exp(np.interp(np.arange(num_steps), steps, logs)))
