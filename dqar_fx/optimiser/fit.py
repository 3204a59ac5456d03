"""Forecasts whose weights are fitted to the model, in the place of a polynomial's.

A forecast adds up what was kept, by weights that depend on the step alone. Polynomials take
them from the distances of steps. Here they are those with which the denoiser's output comes
nearest to what it should be.

Errors of sites that cancel in the output are left to cancel, and drift of earlier steps is
part of the inputs: fitting each site alone to what it should give does worse.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.builder.builder import Builder
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.calibration.observe import ObservedDenoiser
from dqar_fx.calibration.pipeline_run import check_pipeline, count_timesteps
from dqar_fx.errors import ScheduleError, check_known
from dqar_fx.passes import FORMATS
from dqar_fx.program.compile_options import CompileOptions
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule, as_schedule, check_at_least
from dqar_fx.schedule.written_out import WrittenActions

from .arguments import check_inputs, check_teacher
from .fit_weights import RIDGE, FittedWeights, FittingProgram
from .teacher_states import TeacherStates
from .trials import PipelineJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.schedule.table import BranchTable

    from .teacher import Teacher


@dataclass(frozen=True)
class FittedActions(WrittenActions):
    """Another schedule's actions, with weights that were fitted to a model."""

    fingerprint: Fingerprint | None = field(default=None, compare=False)
    """Identifies the model."""

    def refuse_other_model(self, model: nn.Module) -> None:
        """Raise `ScheduleError` if the weights were fitted to another model."""
        if self.fingerprint is not None:
            self.fingerprint.refuse_other(model, "the fitted forecast")


def fit_forecasts(
    pipeline: Any,
    inputs: Sequence[Any],
    schedule: Schedule | str,
    *,
    sites: str | Sequence[str] | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    ridge: float = RIDGE,
    teacher: Teacher | None = None,
    cache: str = "same",
    **call: Any,
) -> Schedule:
    """Fit the weights of a schedule's forecasts to a model.

    The pipeline is run once, with all inputs as one batch. A step that forecasts is evaluated
    once more for each weight: sites times kept values.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns. Guidance is as the call says; of streams with calls of
            their own, the first one's weights are those of all.
        inputs: Prompts or class labels: the pipeline's first argument.
        schedule: A schedule of the whole trajectory, with forecasts, or the name of a schedule
            tier.
        sites: As for ``transform``; by default those that the schedule is meant for.
        num_steps: Denoising steps (``num_inference_steps``), by default as many as the
            schedule has; it has to be given where that has no number of its own.
        seed: Seed of the noise.
        ridge: What holds the weights where they are, as a share of the mean squared effect of
            a weight; above 0. A strong one (1) gains less on these pictures, and may gain
            more on others where computed steps are far between.
        teacher: Whose samples are the aim, of the default solver: a step that forecasts then
            comes nearest to where the teacher is at the next noise level, and mends what the
            solver has left out before. By default the aim is what the untransformed model
            gives for the same sample.
        cache: The format of what is kept, as for ``transform``: weights are fitted to what is
            read from it.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        The same actions with weights: a schedule of the same cost, for ``transform``. It
        refuses other models.

    Raises:
        ScheduleError: Nothing is forecast, the schedule does not fit the pipeline, the ridge
            is out of range, or the pipeline's steps are none that a teacher could aim at.
        OptionError: The scheduler does not say what the model was trained for, or the format
            is unknown.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_pipeline(pipeline)
    check_inputs(inputs)
    check_known("cache=", cache, FORMATS)
    schedule = as_schedule(schedule)
    if not 0 < ridge < np.inf:
        raise ScheduleError(f"ridge={ridge!r}: expected a number above 0, such as {RIDGE}")
    if teacher is not None:
        check_teacher(teacher)
    if sites is None:
        sites = "attention" if schedule.sites is None else schedule.sites
    steps = schedule.num_steps if num_steps is None else num_steps
    if steps is None:
        raise ScheduleError(
            "the schedule has no number of steps: say how many the pipeline shall run, "
            "num_steps=20"
        )
    check_at_least(1, num_steps=steps)
    length = count_timesteps(pipeline.scheduler, steps)
    if schedule.num_steps not in (None, length):
        raise ScheduleError(
            f"the schedule has {schedule.num_steps} steps, but the pipeline's scheduler makes "
            f"{length} evaluations of {steps} steps. Give a schedule of {length} steps, or "
            "without a number"
        )
    job = PipelineJob(pipeline, tuple(inputs), seed, steps, len(inputs), call)
    wanted = sites if isinstance(sites, str) else tuple(sites)
    return fit(job, schedule.for_run(length), wanted, ridge, teacher, cache)


def fit(
    job: PipelineJob,
    schedule: Schedule,
    sites: str | tuple[str, ...],
    ridge: float = RIDGE,
    teacher: Teacher | None = None,
    cache: str = "same",
) -> Schedule:
    """Fit a schedule's weights to the model of a job, whose inputs are one batch.

    Raises:
        ScheduleError: The schedule forecasts nothing.
    """
    model, fitted = job.pipeline.transformer, FittedWeights(ridge)
    builder = Builder(schedule, sites, "output", FORMATS[cache])
    eager = CompileOptions.of(None)
    denoiser = ObservedDenoiser(
        model,
        lambda fork, args, kwargs: FittingProgram(builder(fork, args, kwargs, eager), fitted),
    )
    scheduler = copy.deepcopy(job.pipeline.scheduler)
    step = scheduler.step
    if teacher is not None:
        fitted.states = TeacherStates.of(teacher, job, scheduler)
        step = fitted.states.watch(step)
    scheduler.step = fitted.view.watch(step)
    job.run(denoiser, scheduler)
    table = denoiser.table
    if not (table.actions == Action.FORECAST).any():
        raise ScheduleError(
            "the schedule forecasts nothing, so that there are no weights to fit: expected "
            "one with forecasts, such as Schedule.interval(50, every=3).forecast(2)"
        )
    return with_weights(table, fitted.array(table), sites, Fingerprint.of(model))


def with_weights(
    table: BranchTable,
    weights: Floats,
    sites: str | tuple[str, ...],
    fingerprint: Fingerprint,
) -> Schedule:
    """Make a schedule of a table's actions and of weights ``[steps, sites, points]``."""
    steps, columns = range(table.num_steps), range(len(table.sites))
    rule = FittedActions(
        letters=tuple(tuple(action.letter for action in table.row(step)) for step in steps),
        strict=True,
        orders=tuple(map(tuple, table.orders.tolist())),
        weights=tuple(tuple(map(tuple, row)) for row in weights.tolist()),
        reasons=tuple(
            tuple(
                "as given" if table.reason is None else table.reason(table, step, site)
                for site in columns
            )
            for step in steps
        ),
        noise=table.noise,
        fingerprint=fingerprint,
    )
    return Schedule(table.num_steps, rule, table.max_age, method=table.method, sites=sites)
