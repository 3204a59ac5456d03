"""What rules read of a calibration run or a policy: arrays, and the model that they hold for.

Rules know both by these protocols alone, so that this folder needs no model and no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dqar_fx.errors import ScheduleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .run import RunShape


class ModelCheck(Protocol):
    """Tells the model that was measured from others."""

    def refuse_other(self, model: Any, what: str) -> None:
        """Raise `ScheduleError`, saying ``what`` does not fit, for another model."""


class MeasuredSites(Protocol):
    """A measurement per step and site of one model."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The module path of each site."""

    @property
    def fingerprint(self) -> ModelCheck:
        """The model that was measured."""

    @property
    def num_steps(self) -> int:
        """How many steps the measured trajectory has."""

    @property
    def max_age(self) -> int:
        """The largest age, in steps, that was measured."""

    def columns(self, sites: tuple[str, ...]) -> NDArray[np.int64]:
        """Return the positions of sites among the measured ones, int64 ``[sites]``.

        Raises:
            ScheduleError: A site was not measured.
        """


class MeasuredRun(MeasuredSites, Protocol):
    """A calibration run, as `dqar_fx.calibrate` gives it."""

    @property
    def entropy(self) -> NDArray[np.float64]:
        """Attention entropy in [0, 1], float64 ``[steps, sites]``."""

    @property
    def change(self) -> NDArray[np.float64]:
        """Relative change of outputs by age, from 1 on; float64 ``[steps, sites, ages]``."""


class PredictedErrors(MeasuredSites, Protocol):
    """A policy, as `dqar_fx.Policy.fit` gives it."""

    @property
    def predicted(self) -> NDArray[np.float64]:
        """Predicted relative error of each reuse, float64 ``[steps, sites, ages]``."""


def check_length(what: str, num_steps: int, run: RunShape) -> None:
    """Check that a run has as many rows as were measured, or are in a file.

    What was measured holds for the distances between its own steps, so that it is not carried
    over to steps that lie farther apart or nearer together.

    Raises:
        ScheduleError: The run has another number of rows.
    """
    if run.num_rows != num_steps:
        raise ScheduleError(
            f"{what} is good for {num_steps} steps, but the run has {run.num_rows}, counted "
            f"as calls of the denoiser per stream. Run {num_steps} steps, or measure at "
            f"{run.num_rows}"
        )
