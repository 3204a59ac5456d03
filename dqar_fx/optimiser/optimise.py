"""The call that finds a schedule under a budget, and its stages in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dqar_fx.calibration.pipeline_run import count_timesteps
from dqar_fx.schedule.forecast import points_of
from dqar_fx.schedule.schedule import check_at_least

from .arguments import check_arguments, check_guidances
from .fit_front import fit_front
from .front import Front, Point
from .measure_model import (
    add_guided_costs,
    identify,
    measure_model,
    recall,
    transform_for_trials,
)
from .search import Search
from .segments import SegmentErrors
from .trials import PipelineJob, ScheduleTrials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.guidance.guidance import Guidance
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

    from .measurements import Measurements

LEVELS = (0.3, 0.36, 0.42, 0.5, 0.6, 0.72, 0.85)
"""Times at which a front is searched, as shares of the time of computing everything."""
FIT_SEEDS, OTHER_SEEDS, HELD_OUT_SEEDS = 250_000, 500_000, 1_000_000
"""Offsets of the seeds that weights are fitted on, of those that confirm what seems better,
and of those that judge the front."""


@dataclass(frozen=True)
class Optimum:
    """What `optimise` found.

    Attributes:
        point: The best table within the budget.
        front: All tables that no other beats.
        measured: The measurements that the search went by.
    """

    point: Point
    front: Front
    measured: Measurements

    @property
    def schedule(self) -> Schedule:
        """The schedule for ``transform``, which brings its sites with it."""
        return self.point.schedule

    @property
    def guidance(self) -> Guidance | None:
        """The guidance for ``transform``."""
        return self.point.guidance

    @property
    def table(self) -> BranchTable:
        """The branch table, whose ``why(step, site)`` explains each cell."""
        return self.front.table(self.point)


def optimise(
    pipeline: Any,
    inputs: Sequence[Any],
    *,
    ms: float | None = None,
    quality: float | None = None,
    cache_bytes: int | None = None,
    orders: Sequence[int] = (0, 1, 2),
    method: str = "taylor",
    sites: str | Sequence[str] = "all",
    guidances: Sequence[Guidance] = (),
    num_steps: int = 50,
    max_age: int = 6,
    trials: int = 80,
    fit: bool = True,
    batch_size: int = 8,
    seed: int = 0,
    compile: str | Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Optimum:
    """Find the schedule with the best pictures within a time, or the fastest at a quality.

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
        quality: Least PSNR in decibels against the untransformed pipeline.
        cache_bytes: Most slot bytes of one stream.
        orders: Orders that a forecast may have; 0 is reuse.
        method: How to forecast; see `Schedule.forecast`.
        sites: As for ``transform``; sites inside of others are refused.
        guidances: What the unconditional stream may do beside what the conditional does; all
            with the same ``batched`` and ``stream``, and without sites' schedules of their
            own.
        num_steps: Denoising steps (``num_inference_steps``).
        max_age: Steps that a kept value may live.
        trials: How many tables are tried on pictures.
        fit: Whether the best tables also get weights that are fitted to the model; see
            `fit_forecasts`. The cost of a table stays the same, and its pictures get better;
            fitting evaluates a step about once per weight. Tables with guidance of their own
            are not fitted.
        batch_size: Inputs per run.
        seed: Seed of the noise, and of the search.
        compile: As for ``transform``; costs are measured with it.
        folder: The folder that measurements and trials are kept in, so that a search that was
            stopped can go on, and that the front is written to.
        progress: Whether to show a progress bar.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        The table, the front around it, which is judged on held-out seeds, and what was
        measured.

    Raises:
        ScheduleError: An argument is out of range, the folder is another search's, or no
            table is within the budget.
        SiteError: A pattern selects no site.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_arguments(pipeline, inputs, orders, method, ms=ms, quality=quality)
    check_guidances(guidances)
    check_at_least(1, num_steps=num_steps, max_age=max_age, batch_size=batch_size)
    check_at_least(1, trials=trials)
    wanted = sites if isinstance(sites, str) else tuple(sites)
    job = PipelineJob(pipeline, tuple(inputs), seed, num_steps, batch_size, call)
    length = count_timesteps(pipeline.scheduler, num_steps)
    guidances = tuple(guidance.for_run(length) for guidance in guidances)
    path = None if folder is None else Path(folder)
    history = max(points_of(method, order) for order in orders)

    with tqdm(total=trials, desc="optimise", disable=not progress) as bar:
        bar.set_postfix_str("measuring")
        denoiser = transform_for_trials(job, wanted, history, method, compile, guidances)
        costliest = (max(orders), method)
        salt = identify(job, wanted, (compile, bool(guidances), costliest))
        file = None if path is None else path / "trials.jsonl"
        on_pictures = ScheduleTrials(job, denoiser, salt, file)
        measured = recall(path, salt, max_age)
        if measured is None:
            unguided = on_pictures
            if guidances:  # where streams are not told apart, other graphs run
                alone = transform_for_trials(job, wanted, history, method, compile, ())
                unguided = ScheduleTrials(job, alone)
            measured = measure_model(job, unguided, wanted, max_age, costliest, salt)
            if guidances:
                measured = add_guided_costs(measured, on_pictures, costliest, guidances[0])
            if path is not None:
                measured.save(path)

        def report(point: Point) -> None:
            bar.update()
            bar.set_postfix_str(f"{point.ms:.0f} ms, {point.psnr_db:.1f} dB")

        others = on_other_seeds(on_pictures, OTHER_SEEDS)
        search = Search(
            measured=measured,
            segments=SegmentErrors(measured, max_age, orders, method),
            trials=on_pictures,
            others=others,
            sites=wanted,
            cache_bytes=cache_bytes,
            guidances=(None, *guidances),
            rng=np.random.default_rng(seed),
            report=report,
        )
        search_front(search, ms, quality, trials)
        full_ms = measured.num_steps * measured.step_ms
        front = Front.of(filter(None, search.points.values()), measured.sites, full_ms)
        if fit:
            bar.set_postfix_str("fitting")
            other_job = replace(job, seed=job.seed + FIT_SEEDS, batch_size=len(job.inputs))
            front = fit_front(front, other_job, (on_pictures, others), path, ms)

    held_out = on_other_seeds(on_pictures, HELD_OUT_SEEDS)
    front = front.with_held_out(
        [held_out.psnr(p.schedule, front.sites, p.guidance) for p in front.points]
    )
    if path is not None:
        front.save(path)
    point = front.within(ms=ms, quality=quality, cache_bytes=cache_bytes)
    return Optimum(point, front, measured)


def search_front(search: Search, ms: float | None, quality: float | None, trials: int) -> None:
    """Spend the trials: within a time, near a quality, or evenly over all times."""
    full = search.measured.num_steps * search.measured.step_ms
    if ms is not None:
        search.improve(ms, trials)
        return
    each = trials // (2 * len(LEVELS) if quality is not None else len(LEVELS))
    for level in LEVELS:
        search.improve(level * full, max(each, 1))
    if quality is None:
        return
    for level in LEVELS:  # from the fastest: the first that can be brought to the quality
        left = trials - sum(point is not None for point in search.points.values())
        if left <= 0:
            return
        best = search.improve(level * full, max(left // 3, 1))
        if best is not None and best.psnr_db >= quality:
            return


def on_other_seeds(trials: ScheduleTrials, offset: int) -> ScheduleTrials:
    """Make trials of the same job on other seeds, which are kept in the same file."""
    job = replace(trials.job, seed=trials.job.seed + offset)
    return ScheduleTrials(job, trials.denoiser, f"{trials.salt}{offset}-", trials.file)
