"""Gates: schedules that decide by signal-to-noise ratio, attention entropy or predicted error.

Like every schedule, a gate is resolved before anything runs: it decides by what the scheduler
tells beforehand or a calibration run has measured, never by a value read inside a step.

Source: DQAR report, "Reuse decision based on SNR + layer scheduling", "Entropy-based gate"
and "Dynamic reuse policy".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dqar_fx.errors import ScheduleError, check_known

from .measured import check_length
from .noise import signal_to_noise
from .rules import AnyModelRule, AnyRunRule
from .schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .measured import MeasuredRun, PredictedErrors
    from .rules import Mask, Moment
    from .run import RunShape


# ---- signal-to-noise ratio -----------------------------------------------------------------


@dataclass(frozen=True)
class SnrGate(AnyModelRule):
    """Reuse in a window of signal-to-noise ratios, while the ratio has not changed much.

    Attributes:
        snr: The ratio at each step; empty where the run has to tell.
        min_snr: Lowest ratio at which to reuse.
        max_snr: Highest ratio at which to reuse.
        max_change: Largest change of the ratio's natural logarithm since an output was kept.
    """

    snr: tuple[float, ...]
    min_snr: float
    max_snr: float
    max_change: float

    @property
    def needs_noise(self) -> bool:
        """Whether the run has to tell the ratios."""
        return not self.snr

    def for_run(self, run: RunShape) -> SnrGate:
        """Return the gate with the ratios of the run, where it has none of its own.

        Raises:
            ScheduleError: It has some for another number of steps, or none are known.
        """
        if self.snr:
            check_length("the SNR gate", len(self.snr), run)
            return self
        if not run.noise:
            raise ScheduleError(
                "the SNR gate has to know the noise levels of the run, and they are not "
                "known. Give the gate its scheduler and number of steps, "
                "snr_gate(scheduler, num_steps, ...), or the run its levels, "
                "schedule.for_run(num_rows, noise=...)"
            )
        return replace(self, snr=run.noise)

    def changes(self, moment: Moment) -> NDArray[np.float64]:
        """Return how far the logarithm has moved since each site was computed, ``[sites]``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.asarray(self.snr))
            moved = np.abs(logs[moment.step] - logs[moment.step - moment.age])
        return np.where(np.isnan(moved), 0.0, moved)  # from infinite to infinite: none

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow a site inside the window, if the ratio is near that of its kept output."""
        inside = self.min_snr <= self.snr[moment.step] <= self.max_snr
        return np.asarray(inside & (self.changes(moment) <= self.max_change))

    def why(self, moment: Moment, site: int) -> str:
        """Say which limit the ratio or its change breaks, or that it keeps all."""
        snr = self.snr[moment.step]
        if snr < self.min_snr:
            return f"SNR {snr:.3g} is below {self.min_snr:.3g}"
        if snr > self.max_snr:
            return f"SNR {snr:.3g} is above {self.max_snr:.3g}"
        change = self.changes(moment)[site]
        if change > self.max_change:
            return f"log SNR has changed by {change:.3g}, more than {self.max_change:.3g}"
        limit = "" if np.isinf(self.max_change) else f", log SNR changed by {change:.3g}"
        return f"SNR {snr:.3g} is in the window{limit}"


def snr_gate(
    scheduler: Any = None,
    num_steps: int | None = None,
    *,
    min_snr: float | None = None,
    max_snr: float | None = None,
    max_change: float | None = None,
    max_age: int | None = None,
    **options: Any,
) -> Schedule:
    """Reuse where the latent's signal-to-noise ratio allows it.

    Args:
        scheduler: A diffusers scheduler, with alphas or with sigmas; it is not changed, and
            it is not needed without a number of steps.
        num_steps: As given to the pipeline (``num_inference_steps``). None for as many as a
            run has, which then has to tell its noise levels.
        min_snr: Compute below this ratio: early steps, all noise.
        max_snr: Compute above this ratio: late steps, details.
        max_change: Compute again once the natural logarithm of the ratio has changed by more
            than this since the output was kept.
        max_age: The most steps that a kept output may be old.
        **options: More arguments of the scheduler's ``set_timesteps``, such as ``mu``.

    Raises:
        ScheduleError: No limit is given, the scheduler's noise levels are unknown, or there
            are arguments for it and no number of steps.

    Source:
        DQAR report, "Reuse decision based on SNR + layer scheduling".
    """
    if min_snr is None and max_snr is None and max_change is None:
        raise ScheduleError(
            "an SNR gate needs a limit: min_snr, max_snr or max_change. The ratios of a "
            "scheduler are dqar_fx.signal_to_noise(scheduler, num_steps)"
        )
    limits = {"min_snr": min_snr, "max_snr": max_snr, "max_change": max_change}
    for name, limit in limits.items():
        if limit is not None and np.isnan(limit):
            raise ScheduleError(f"{name} must be a number, found {limit}")
    if num_steps is None:
        if options:
            raise ScheduleError(
                f"{', '.join(options)}: arguments of the scheduler's set_timesteps, which is "
                "called with a number of steps. Give num_steps, too"
            )
        snr = ()
    else:
        snr = tuple(signal_to_noise(scheduler, num_steps, **options).tolist())
    gate = SnrGate(
        snr,
        0.0 if min_snr is None else min_snr,
        np.inf if max_snr is None else max_snr,
        np.inf if max_change is None else max_change,
    )
    return Schedule(len(snr) or None, gate, max_age)


# ---- attention entropy ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EntropyGate(AnyRunRule):
    """Reuse where a site's attention is broad (or narrow) enough.

    Attributes:
        calibration: The run that measured the entropies.
        thresholds: float64, one per site of the calibration, in [0, 1].
        reuse: Whether to reuse ``"above"`` the threshold or ``"below"`` it.
    """

    calibration: MeasuredRun
    thresholds: NDArray[np.float64]
    reuse: Literal["above", "below"]

    def for_run(self, run: RunShape) -> EntropyGate:
        """Return the gate itself; raise `ScheduleError` for another number of steps."""
        check_length("the entropy gate", self.calibration.num_steps, run)
        return self

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site whose entropy is on the chosen side of its threshold."""
        columns = self.calibration.columns(moment.sites)
        entropy = self.calibration.entropy[moment.step, columns]
        limit = self.thresholds[columns]
        return np.asarray(entropy >= limit if self.reuse == "above" else entropy < limit)

    def why(self, moment: Moment, site: int) -> str:
        """Compare the entropy with the threshold."""
        column = self.calibration.columns(moment.sites)[site]
        entropy, limit = self.calibration.entropy[moment.step, column], self.thresholds[column]
        side = "at least" if entropy >= limit else "below"
        return f"attention entropy {entropy:.3f} is {side} {limit:.3f}"

    def refuse_other_model(self, model: Any) -> None:
        """Raise `ScheduleError` if the calibration was of another model."""
        self.calibration.fingerprint.refuse_other(model, "the entropy gate")


def entropy_gate(
    calibration: MeasuredRun,
    threshold: float | Sequence[float] | Mapping[str, float] | None = None,
    *,
    quantile: float | None = None,
    reuse: Literal["above", "below"] = "above",
    max_age: int | None = None,
) -> Schedule:
    """Reuse where attention is broad: its entropy is high, and no single key dominates.

    Args:
        calibration: A calibration of this model, from `dqar_fx.calibrate`.
        threshold: Entropy in [0, 1], where 1 weighs all keys alike: one for all sites, one
            per site of the calibration, or one by module path.
        quantile: Takes the place of a threshold: this quantile of each site's own entropies.
        reuse: ``"above"`` the threshold, or ``"below"`` for narrow attention.
        max_age: The most steps that a kept output may be old.

    Raises:
        ScheduleError: Neither or both of threshold and quantile are given, one of them is
            out of range or does not fit the sites, or ``reuse`` is unknown.

    Source:
        DQAR report, "Entropy-based gate" (planned there, per-layer threshold).
    """
    if (threshold is None) == (quantile is None):
        raise ScheduleError("an entropy gate needs a threshold or a quantile, and not both")
    check_known("reuse=", reuse, ("above", "below"), ScheduleError)
    if quantile is not None:
        if not 0 <= quantile <= 1:
            raise ScheduleError(f"quantile must be in [0, 1], found {quantile}")
        limits = np.quantile(calibration.entropy, quantile, axis=0)
    else:
        limits = thresholds_of(threshold, calibration.sites)
        if np.isnan(limits).any():
            raise ScheduleError(f"thresholds must be numbers, found {threshold!r}")
    gate = EntropyGate(calibration, limits, reuse)
    return Schedule(calibration.num_steps, gate, max_age)


def thresholds_of(
    threshold: float | Sequence[float] | Mapping[str, float] | None, sites: tuple[str, ...]
) -> NDArray[np.float64]:
    """Return one threshold per site, float64 ``[sites]``.

    Raises:
        ScheduleError: A site has no threshold, or there are thresholds of no site.
    """
    if hasattr(threshold, "keys"):
        named: Any = threshold
        missing = [path for path in sites if path not in named]
        unknown = [path for path in named if path not in sites]
        if missing or unknown:
            raise ScheduleError(
                f"thresholds by path must name each site once; missing are {missing}, "
                f"unknown are {unknown}"
            )
        return np.array([named[path] for path in sites], np.float64)
    try:
        return np.array(np.broadcast_to(np.asarray(threshold, np.float64), len(sites)))
    except ValueError:
        raise ScheduleError(
            f"expected one threshold, or {len(sites)}, one per site; found {threshold!r}"
        ) from None


# ---- learned policy ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PolicyGate(AnyRunRule):
    """Reuse where the predicted error is small.

    Attributes:
        policy: Predicts the error of every step, site and age.
        max_error: Largest error of the denoiser's output that a reuse may cause.
    """

    policy: PredictedErrors
    max_error: float

    def for_run(self, run: RunShape) -> PolicyGate:
        """Return the gate itself; raise `ScheduleError` for another number of steps."""
        check_length("the learned policy", self.policy.num_steps, run)
        return self

    def errors(self, moment: Moment) -> NDArray[np.float64]:
        """Return the predicted error of each site, ``[sites]``; infinite at unknown ages."""
        columns = self.policy.columns(moment.sites)
        known = np.minimum(moment.age, self.policy.max_age)
        error = self.policy.predicted[moment.step, columns, known - 1]
        return np.where(moment.age <= self.policy.max_age, error, np.inf)

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site whose predicted error is small enough."""
        return np.asarray(self.errors(moment) <= self.max_error)

    def why(self, moment: Moment, site: int) -> str:
        """Compare the predicted error with the limit, or say why there is none."""
        age, error = moment.age[site], self.errors(moment)[site]
        if age <= self.policy.max_age and np.isinf(error):
            return f"no reuse of age {age} was measured at this step"
        if np.isinf(error):
            return f"age {age} is beyond the {self.policy.max_age} steps that were calibrated"
        side = "within" if error <= self.max_error else "beyond"
        return f"predicted error {error:.2e} at age {age} is {side} {self.max_error:.2e}"

    def refuse_other_model(self, model: Any) -> None:
        """Raise `ScheduleError` if the policy was trained for another model."""
        self.policy.fingerprint.refuse_other(model, "the learned policy")


def policy_gate(
    policy: PredictedErrors, max_error: float, *, max_age: int | None = None
) -> Schedule:
    """Reuse where a learned policy predicts a small error.

    Args:
        policy: A policy of this model, from ``Policy.fit(calibration)``.
        max_error: Largest error of the denoiser's output, relative to its norm, that one
            reused site may cause at one step.
        max_age: The most steps that a kept output may be old; never more than the policy
            was fitted to.

    Raises:
        ScheduleError: ``max_error`` is not positive.

    Source:
        DQAR report, "Dynamic reuse policy" (planned there, MLP-based).
    """
    if not max_error > 0:
        raise ScheduleError(f"max_error must be positive, found {max_error}")
    return Schedule(policy.num_steps, PolicyGate(policy, max_error), max_age)
