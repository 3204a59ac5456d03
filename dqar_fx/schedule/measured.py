"""What rules read of a calibration run and of a policy: arrays, and for which model they hold.

Rules know these only by what they offer, so that this folder needs no model and no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ModelCheck(Protocol):
    """Knows the model that something was measured on."""

    def refuse_other(self, model: Any, what: str) -> None:
        """Raise `ScheduleError` unless ``model`` is the one that was measured."""


class MeasuredSites(Protocol):
    """Something that was measured per step and site of one model."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Module path per site."""

    @property
    def fingerprint(self) -> ModelCheck:
        """The model."""

    @property
    def num_steps(self) -> int:
        """Steps of the measured trajectory."""

    @property
    def max_age(self) -> int:
        """The largest age, in steps, that was looked at."""

    def columns(self, sites: tuple[str, ...]) -> NDArray[np.int64]:
        """Positions of sites among the measured ones; `ScheduleError` for one that is not."""


class MeasuredRun(MeasuredSites, Protocol):
    """A calibration run, as `dqar_fx.calibrate` gives it."""

    @property
    def entropy(self) -> NDArray[np.float64]:
        """Attention entropy in [0, 1], ``[steps, sites]``."""

    @property
    def change(self) -> NDArray[np.float64]:
        """Relative change of outputs, ``[steps, sites, ages]``."""


class PredictedErrors(MeasuredSites, Protocol):
    """A policy, as ``dqar_fx.Policy.fit`` gives it."""

    @property
    def predicted(self) -> NDArray[np.float64]:
        """Predicted relative error of a reuse, ``[steps, sites, ages]``."""
