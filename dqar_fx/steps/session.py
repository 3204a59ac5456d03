"""The state of one request: its clock, its streams' number, and the log of its runs."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import StepError
from dqar_fx.notices import Once, warn

from .runs import KEPT_RUNS, Run
from .tracker import StepTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from .position import Call, Position

logger = logging.getLogger("dqar_fx.runs")

MANY_RESTARTS = 4
"""Short runs in a row after which something is probably wrong."""


class Session:
    """Follows the calls of one request after another, and logs them.

    Args:
        number: Its own among those of its denoiser; None for what has no session.
        once: What warns of each thing once.

    Attributes:
        tracker: Its clock.
        runs: The latest runs, the last one may go on.
    """

    def __init__(self, number: int | None = None, once: Once | None = None) -> None:
        self.number = number
        self.tracker = StepTracker(number, once)
        self.runs: deque[Run] = deque(maxlen=KEPT_RUNS)
        self._short_runs = 0

    def locate(self, call: Call, find_scheduler: Callable[[], Any]) -> Position:
        """Find the position of a call, and keep the log of its run.

        Raises:
            StepError: Nothing tells which step it is.
        """
        position = self.tracker.locate(call, find_scheduler)
        if not self.runs or position.run is not self.runs[-1]:
            assert position.run is not None, "the tracker logs every run"
            self.end_run()
            self.runs.append(position.run)
        return position

    def note_time(self, milliseconds: float) -> None:
        """Log what the call that ran last took."""
        if self.runs and self.runs[-1].calls:
            self.runs[-1].calls[-1].milliseconds = milliseconds

    def end_run(self) -> None:
        """Note that no call of the latest run will come any more."""
        if self.runs and not self.runs[-1].is_ended:
            run = self.runs[-1]
            run.is_ended, run.token = True, None  # that may hold a scheduler with latents
            if run.calls and logger.isEnabledFor(logging.INFO):
                logger.info("%s", run.describe())

    def reset(self) -> None:
        """Forget how far the run has come: the next call begins another one."""
        self.end_run()
        self.tracker.reset()
        self._short_runs = 0

    def check_restarts(self, num_rows: int) -> None:
        """Warn if one run after the other ends long before its last step.

        Args:
            num_rows: Rows of the branch table.
        """
        before = self.runs[-2] if len(self.runs) > 1 else None
        is_guess = before is not None and before.clock != "scheduler"
        is_short = is_guess and before is not None and 2 * (before.last + 1) < num_rows
        self._short_runs = self._short_runs + 1 if is_short else 0
        self.runs[-1].restarts = self._short_runs
        if self._short_runs == MANY_RESTARTS - 1:
            warn(
                f"{MANY_RESTARTS} runs in a row each ended long before their last step, so "
                "that next to nothing is reused. Expected timesteps that rise or fall, or one "
                "latent for all streams of a step; where that is not so, use "
                "Denoiser.cache_context(name, step_index=...) or attach_scheduler(scheduler)"
            )


class LengthCheck:
    """Compares the lengths of runs with that of a branch table whose length is fixed."""

    def __init__(self) -> None:
        self._once = Once()

    def check(self, position: Position, num_steps: int) -> None:
        """Warn, once for each length, of a run that is shorter than the branch table.

        Raises:
            StepError: It is longer.
        """
        if position.computes:
            return  # no row is that of all samples
        length = position.length or position.step + 1
        if position.length is not None and length < num_steps:
            self._once.warn(
                f"the trajectory has {length} steps but the branch table {num_steps}: only "
                "its first rows are used. Transform with a schedule of as many steps as the "
                "pipeline takes (num_inference_steps), or with one that has no number of "
                "steps, such as Schedule.interval(every=2)",
                key=f"short {length}",
            )
        if position.step >= num_steps or (position.step > 0 and length > num_steps + 1):
            raise StepError(
                f"the trajectory is longer than the branch table: step {position.step} of "
                f"{'at least ' if position.length is None else ''}{length} steps, but the "
                f"table has {num_steps}. Transform with a schedule of as many steps as "
                "the pipeline takes (num_inference_steps), or with one that has no number of "
                "steps, such as Schedule.interval(every=2)"
            )
