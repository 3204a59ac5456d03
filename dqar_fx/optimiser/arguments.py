"""Checks of what a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.calibration.pipeline_run import check_pipeline
from dqar_fx.errors import ScheduleError, check_known
from dqar_fx.guidance.guidance import Guidance
from dqar_fx.schedule.forecast import MAX_ORDER, METHODS

from .teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Budget:
    """What a search may spend; None for any amount.

    Attributes:
        ms: Most milliseconds of one batch's trajectory in the denoiser.
        evaluations: The same in steps that compute everything.
        quality: Least PSNR in decibels.
        cache_bytes: Most slot bytes of one stream.
    """

    ms: float | None = None
    evaluations: float | None = None
    quality: float | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        """Raise `ScheduleError` for what is no budget."""
        for name in ("ms", "evaluations", "quality"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and np.isfinite(value) and value > 0):
                raise ScheduleError(f"{name} must be a positive number, found {value!r}")
        if self.ms is not None and self.evaluations is not None:
            raise ScheduleError(
                f"ms={self.ms!r} and evaluations={self.evaluations!r} are one budget in two "
                "units: give one of them"
            )

    def time_of(self, step_ms: float) -> float | None:
        """The milliseconds, given those of a step that computes everything."""
        return self.ms if self.evaluations is None else self.evaluations * step_ms


@dataclass(frozen=True)
class SearchOptions:
    """What both kinds of searches are given, see `optimise`.

    Attributes:
        orders: Orders that a forecast may have; 0 is reuse.
        method: How to forecast.
        sites: As for ``transform``.
        trials: How many tables are tried.
        compile: As for ``transform``.
        folder: Where measurements and trials are kept; None for nowhere.
        progress: Whether to show a progress bar.
    """

    orders: tuple[int, ...]
    method: str
    sites: str | tuple[str, ...]
    trials: int
    compile: Any
    folder: Path | None
    progress: bool


def check_arguments(
    pipeline: Any,
    inputs: Sequence[Any],
    orders: Sequence[int],
    method: str,
    call: Mapping[str, Any],
) -> None:
    """Refuse what cannot be optimised; the arguments are those of `optimise`.

    Raises:
        ScheduleError: An argument is out of range.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_pipeline(pipeline)
    check_inputs(inputs)
    if not orders or not all(isinstance(o, int) and 0 <= o <= MAX_ORDER for o in orders):
        raise ScheduleError(f"orders must be among 0 to {MAX_ORDER}, found {orders!r}")
    if 0 not in orders:
        raise ScheduleError(
            f"orders={tuple(orders)!r} lacks 0: the step after the first can only be reused"
        )
    check_known("forecast ", method, METHODS, ScheduleError)
    check_call(call)


def check_call(call: Mapping[str, Any]) -> None:
    """Refuse arguments of a pipeline that searches and fits give it themselves.

    Raises:
        ScheduleError: There is one.
    """
    for name in ("num_inference_steps", "generator", "output_type"):
        if name in call:
            raise ScheduleError(
                f"{name} is what the pipeline is given anyway: the number of steps is an "
                "argument of its own or found, seed= says which noise. Leave it out"
            )


def check_for_teacher(
    teacher: Any, budget: Budget, guidances: Sequence[Guidance], num_steps: int | None
) -> None:
    """Refuse what a search for a solver cannot use; the arguments are those of `optimise`.

    Raises:
        ScheduleError: Something has another type, or means nothing.
    """
    check_teacher(teacher)
    if budget.ms is None and budget.evaluations is None:
        raise ScheduleError(
            "with a teacher a search needs a time: give evaluations=8, or ms=. Without one "
            "the best is as many steps as the teacher's"
        )
    unused = {
        "quality": budget.quality is not None,
        "guidances": bool(guidances),
        "num_steps": num_steps is not None,
    }
    for name in (name for name, is_given in unused.items() if is_given):
        raise ScheduleError(
            f"{name}= is for a search without a teacher, on the pipeline's own scheduler. "
            "Leave it out, or leave out teacher="
        )


def check_teacher(teacher: Any) -> None:
    """Refuse what is no teacher.

    Raises:
        ScheduleError: It is none.
    """
    if not isinstance(teacher, Teacher):
        raise ScheduleError(f"teacher={teacher!r}: expected a dqar_fx.Teacher, or None")


def check_inputs(inputs: Sequence[Any]) -> None:
    """Refuse a single prompt, and no inputs at all.

    Raises:
        ScheduleError: The inputs are not several prompts or labels.
    """
    if isinstance(inputs, str) or not len(inputs):
        raise ScheduleError(f"inputs must be several prompts or labels, found {inputs!r}")


def check_guidances(guidances: Sequence[Guidance]) -> None:
    """Refuse guidance that cannot be compared in one search.

    Raises:
        ScheduleError: The guidances disagree in how streams are told apart, or bring schedules
            of the unconditional stream's sites.
    """
    if not all(isinstance(each, Guidance) for each in guidances):
        raise ScheduleError(f"guidances must be dqar_fx.Guidance, found {guidances!r}")
    if len({(each.batched, each.stream) for each in guidances}) > 1:
        raise ScheduleError("guidances must agree in batched and stream")
    if any(each.unconditional is not None for each in guidances):
        raise ScheduleError(
            "guidances must not bring schedules of the unconditional stream's sites: these "
            "are searched"
        )
