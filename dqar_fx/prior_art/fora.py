"""FORA (arXiv 2407.01425), which computes attention and feed-forward at each N-th step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.schedule.schedule import check_at_least, check_known_at_least

from .decisions import StepDecision, StepRule, schedule_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.schedule.schedule import Schedule


def fora(num_steps: int | None = None, every: int = 3) -> Schedule:
    """Compute attention and feed-forward at each ``every``-th step: FORA.

    As in its code, steps are counted back from the last one, which is computed: of 8 steps
    with ``every=3``, these are 0, 1, 4 and 7. Papers that compare themselves with FORA (ToCa,
    TaylorSeer) count from the first step, which is ``Schedule.interval(num_steps, every)``.

    Args:
        num_steps: Steps of the trajectory; None for as many as a run has.
        every: Distance between computed steps (its N); 1 computes at each step.

    Returns:
        A schedule for ``"all"`` attention and feed-forward sites.

    Raises:
        ScheduleError: An argument is out of range.

    Source:
        Selvaraju et al. 2024, arXiv 2407.01425; prathebaselva/FORA, src/models.py.
    """
    check_known_at_least(1, num_steps=num_steps)
    check_at_least(1, every=every)
    return schedule_steps(StepRule(decide_fora, (every,)), num_steps, "all")


def decide_fora(every: int, num_steps: int) -> Iterator[StepDecision]:
    """Yield what FORA does at each step."""
    yield StepDecision("C", "FORA computes the first step")
    for left in reversed(range(num_steps - 1)):
        if left % every == 0:
            yield StepDecision("C", f"FORA: steps left are a multiple of {every}: {left}")
        else:
            yield StepDecision("R", f"FORA: steps left are no multiple of {every}: {left}")
