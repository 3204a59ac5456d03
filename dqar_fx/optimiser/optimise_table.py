"""The search for a table on top of a pipeline's own scheduler, and its stages in order."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dqar_fx.calibration.pipeline_run import count_timesteps
from dqar_fx.schedule.forecast import points_of

from .fit_front import fit_front
from .front import Front, Point
from .measure_model import (
    add_guided_costs,
    identify,
    measure_model,
    recall,
    transform_for_trials,
)
from .optimum import Optimum
from .search import Search
from .segments import SegmentErrors
from .trials import ScheduleTrials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.guidance.guidance import Guidance

    from .arguments import Budget, SearchOptions
    from .trials import PipelineJob

LEVELS = (0.3, 0.36, 0.42, 0.5, 0.6, 0.72, 0.85)
"""Times at which a front is searched, as shares of the time of computing everything."""
FIT_SEEDS, OTHER_SEEDS, HELD_OUT_SEEDS = 250_000, 500_000, 1_000_000
"""Offsets of the seeds that weights are fitted on, of those that confirm what seems better,
and of those that judge the front."""


def optimise_table(
    job: PipelineJob,
    judged_on: tuple[Any, ...],
    budget: Budget,
    options: SearchOptions,
    *,
    guidances: Sequence[Guidance],
    max_age: int,
    fit: bool,
) -> Optimum:
    """Find a table; the arguments are those of `optimise`."""
    sites, method, orders = options.sites, options.method, options.orders
    compile, folder, trials = options.compile, options.folder, options.trials
    length = count_timesteps(job.pipeline.scheduler, job.num_steps)
    guidances = tuple(guidance.for_run(length) for guidance in guidances)
    history = max(points_of(method, order) for order in orders)

    with tqdm(total=trials, desc="optimise", disable=not options.progress) as bar:
        bar.set_postfix_str("measuring")
        denoiser = transform_for_trials(job, sites, history, method, compile, guidances)
        costliest = (max(orders), method)
        salt = identify(job, sites, (compile, bool(guidances), costliest))
        file = None if folder is None else folder / "trials.jsonl"
        on_pictures = ScheduleTrials(job, denoiser, salt, file)
        measured = recall(folder, salt, max_age)
        if measured is None:
            unguided = on_pictures
            if guidances:  # where streams are not told apart, other graphs run
                alone = transform_for_trials(job, sites, history, method, compile, ())
                unguided = ScheduleTrials(job, alone)
            measured = measure_model(job, unguided, sites, max_age, costliest, salt)
            if guidances:
                measured = add_guided_costs(measured, on_pictures, costliest, guidances[0])
            if folder is not None:
                measured.save(folder)

        def report(point: Point) -> None:
            bar.update()
            bar.set_postfix_str(f"{point.ms:.0f} ms, {point.psnr_db:.1f} dB")

        others = on_other_seeds(on_pictures, OTHER_SEEDS)
        search = Search(
            measured=measured,
            segments=SegmentErrors(measured, max_age, orders, method),
            trials=on_pictures,
            others=others,
            sites=sites,
            cache_bytes=budget.cache_bytes,
            guidances=(None, *guidances),
            rng=np.random.default_rng(job.seed),
            report=report,
        )
        ms = budget.time_of(measured.step_ms)
        search_front(search, ms, budget.quality, trials)
        full_ms = measured.num_steps * measured.step_ms
        tried = filter(None, search.points.values())
        front = Front.of(tried, measured.sites, full_ms, measured.fingerprint)
        if fit:
            bar.set_postfix_str("fitting")
            other_job = replace(job, seed=job.seed + FIT_SEEDS, batch_size=len(job.inputs))
            front = fit_front(front, other_job, (on_pictures, others), folder, ms)

    held_out = on_other_seeds(on_pictures, HELD_OUT_SEEDS, judged_on)
    front = front.with_held_out(
        [held_out.psnr(p.schedule, front.sites, p.guidance) for p in front.points]
    )
    if folder is not None:
        front.save(folder)
    point = front.within(ms=ms, quality=budget.quality, cache_bytes=budget.cache_bytes)
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


def on_other_seeds(
    trials: ScheduleTrials, offset: int, inputs: tuple[Any, ...] | None = None
) -> ScheduleTrials:
    """Make trials of the same job on other seeds and inputs, kept in the same file."""
    job = replace(trials.job, seed=trials.job.seed + offset)
    salt = f"{trials.salt}{offset}-"
    if inputs not in (None, job.inputs):
        assert inputs is not None
        job = replace(job, inputs=inputs)
        salt += hashlib.sha256(repr(inputs).encode()).hexdigest()[:8]
    return ScheduleTrials(job, trials.denoiser, salt, trials.file)
