"""The call that finds a schedule, or a solver and a schedule, under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqar_fx.schedule.schedule import check_at_least

from .arguments import (
    Budget,
    SearchOptions,
    check_arguments,
    check_for_teacher,
    check_guidances,
    check_inputs,
)
from .fit_solver import ROUNDS
from .optimise_solver import optimise_solver
from .optimise_table import optimise_table
from .trials import PipelineJob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.guidance.guidance import Guidance

    from .optimum import Optimum
    from .teacher import Teacher

STEPS, TRIALS, SOLVER_TRIALS = 50, 80, 8


def optimise(
    pipeline: Any,
    inputs: Sequence[Any],
    *,
    ms: float | None = None,
    evaluations: float | None = None,
    quality: float | None = None,
    cache_bytes: int | None = None,
    teacher: Teacher | None = None,
    orders: Sequence[int] = (0, 1, 2),
    method: str = "taylor",
    sites: str | Sequence[str] = "all",
    guidances: Sequence[Guidance] = (),
    num_steps: int | None = None,
    max_age: int = 6,
    trials: int | None = None,
    fit: bool = True,
    rounds: int = ROUNDS,
    judged_on: Sequence[Any] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    compile: str | Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Optimum:
    """Find the schedule with the best pictures within a time, or the fastest at a quality.

    Without a teacher the pipeline's scheduler and number of steps stand, and pictures are
    compared with those of the untransformed model. With a teacher everything is chosen
    together, so that pictures come nearest to the teacher's within a time: the number of
    steps, the solver and its timesteps (see `fit_solver`), the steps that compute, and the
    weights of the forecasts in the others. The rest of this paragraph is about the first.

    One run of the untransformed pipeline measures the error of every cell (site, step, age,
    order) and what it does to the denoiser's output; a few more runs measure what an error at
    a step does to the pictures, and what steps cost. The tables that are best under that model
    are then tried on pictures and improved; in the end the weights of their forecasts are
    fitted. The same inputs and costs give the same tables.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns.
        inputs: Prompts or class labels: the pipeline's first argument.
        ms: Most time of one batch's trajectory in the denoiser, in milliseconds.
        evaluations: The same as so many times the measured time of a step that computes all.
        quality: Least PSNR in decibels against the untransformed pipeline; not with a teacher.
        cache_bytes: Most slot bytes of one stream.
        teacher: Whose pictures are the aim; the pipeline's scheduler says what its model was
            trained for.
        orders: Orders that a forecast may have; 0 is reuse.
        method: How to forecast; see `Schedule.forecast`.
        sites: As for ``transform``; sites inside of others are refused.
        guidances: What the unconditional stream may do beside what the conditional does; all
            with the same ``batched`` and ``stream``, and without sites' schedules of their
            own; not with a teacher.
        num_steps: Denoising steps (``num_inference_steps``), by default 50; not with a
            teacher, where they follow from the time.
        max_age: Steps that a kept value may live.
        trials: How many tables are tried on pictures; by default 80, or 8 with a teacher,
            where a trial is a fit.
        fit: Whether the best tables also get weights that are fitted to the model; see
            `fit_forecasts`. The cost of a table stays the same, and its pictures get better;
            fitting evaluates a step about once per weight. Tables with guidance of their own
            are not fitted. A teacher's are always fitted.
        rounds: Most rounds of a fit to a teacher.
        judged_on: Prompts or labels of the pictures that judge what was found; by default the
            inputs. Their seeds are others in any case.
        batch_size: Inputs per run.
        seed: Seed of the noise, and of the search.
        compile: As for ``transform``; costs are measured with it.
        folder: The folder that measurements and trials are kept in, so that a search that was
            stopped can go on, and that the front is written to.
        progress: Whether to show a progress bar.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        The table, the front around it, which is judged on held-out seeds, and what was
        measured; with a teacher the solver, and what each part is worth.

    Raises:
        ScheduleError: An argument is out of range, the folder is another search's, or no
            table is within the budget.
        SiteError: A pattern selects no site.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    budget = Budget(ms, evaluations, quality, cache_bytes)
    check_arguments(pipeline, inputs, orders, method, call)
    check_guidances(guidances)
    if judged_on is not None:
        check_inputs(judged_on)
    steps = STEPS if num_steps is None else num_steps
    check_at_least(1, num_steps=steps, max_age=max_age, batch_size=batch_size, rounds=rounds)
    job = PipelineJob(pipeline, tuple(inputs), seed, steps, batch_size, call)
    if trials is None:
        trials = TRIALS if teacher is None else SOLVER_TRIALS
    check_at_least(1, trials=trials)
    options = SearchOptions(
        orders=tuple(orders),
        method=method,
        sites=sites if isinstance(sites, str) else tuple(sites),
        trials=trials,
        compile=compile,
        folder=None if folder is None else Path(folder),
        progress=progress,
    )
    others = tuple(inputs if judged_on is None else judged_on)
    if teacher is None:
        return optimise_table(
            job, others, budget, options, guidances=guidances, max_age=max_age, fit=fit
        )
    check_for_teacher(teacher, budget, guidances, num_steps)
    return optimise_solver(job, others, budget, options, teacher=teacher, rounds=rounds)
