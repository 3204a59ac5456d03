"""The call that finds a schedule under a budget, and the way of its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dqar_fx.schedule.forecast import points_of
from dqar_fx.schedule.schedule import check_at_least

from .arguments import check_arguments, check_guidances
from .fit_front import fit_front
from .front import Front, Point
from .measuring import add_guided_costs, identify, keep_steps, measure, recall
from .search import Search
from .segments import Segments
from .trials import Job, Trials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.guidance.guidance import Guidance
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

    from .measured import Measured

LEVELS = (0.3, 0.36, 0.42, 0.5, 0.6, 0.72, 0.85)
"""Shares of the full time at which a front is searched."""
FIT_SEEDS, OTHER_SEEDS, HELD_OUT = 250_000, 500_000, 1_000_000
"""Distances of the seeds that weights are fitted on, of those that confirm what seems better,
and of those that judge the front."""


@dataclass(frozen=True)
class Optimum:
    """What `optimise` found.

    Attributes:
        point: The best table within the budget.
        front: All tables that no other beats.
        measured: What the search went by.
    """

    point: Point
    front: Front
    measured: Measured

    @property
    def schedule(self) -> Schedule:
        """For ``transform``; it brings its sites with it."""
        return self.point.schedule

    @property
    def guidance(self) -> Guidance | None:
        """For ``transform``, too."""
        return self.point.guidance

    @property
    def table(self) -> BranchTable:
        """The branch table; ``table.why(step, site)`` tells of each cell."""
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
    """Find the schedule that gives the best pictures in a time, or is fastest at a quality.

    One run of the untransformed pipeline measures the error of every cell (site, step, age,
    order) and what it does to the denoiser's output; a few more measure what an error at a
    step does to the pictures, and what rows cost. Tables that are best under that model are
    then tried on pictures and improved; in the end the weights of their forecasts are fitted.
    Same inputs and costs give the same tables.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns.
        inputs: Prompts, or class labels: its first argument.
        ms: Most time of one batch's trajectory in the denoiser, in milliseconds.
        quality: Least PSNR in decibels against the untransformed pipeline.
        cache_bytes: Most bytes that one stream may keep.
        orders: Orders that a forecast may have; 0 is reuse.
        method: How to forecast, see `Schedule.forecast`.
        sites: As for ``transform``; sites inside of others are refused.
        guidances: What the unconditional stream may do, beside the same as the conditional;
            all with the same ``batched`` and ``stream``, and without sites' schedules of
            their own.
        num_steps: Denoising steps (``num_inference_steps``).
        max_age: Steps that a kept value may live.
        trials: Tables that are tried on pictures.
        fit: Whether the best tables also get weights that are fitted to the model, see
            `fit_forecasts`: the same cost, better pictures; about as many evaluations of a
            step as it has weights. Tables with guidance of their own are not fitted.
        batch_size: Inputs per run.
        seed: Of the noise, and of the search.
        compile: As for ``transform``: what costs are measured with.
        folder: Where measurements and trials are kept, so that a search that was stopped goes
            on; and the front.
        progress: Whether to show a progress bar.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        The table, the front around it, judged on held-out seeds, and what was measured.

    Raises:
        ScheduleError: An argument is out of range, or no table is within the budget.
        SiteError: A pattern selects no site.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_arguments(pipeline, inputs, orders, method, ms=ms, quality=quality)
    check_guidances(guidances)
    check_at_least(1, num_steps=num_steps, max_age=max_age, batch_size=batch_size)
    check_at_least(1, trials=trials)
    wanted = sites if isinstance(sites, str) else tuple(sites)
    job = Job(pipeline, tuple(inputs), seed, num_steps, batch_size, call)
    place = None if folder is None else Path(folder)
    history = max(points_of(method, order) for order in orders)

    with tqdm(total=trials, desc="optimise", disable=not progress) as bar:
        bar.set_postfix_str("measuring")
        denoiser = keep_steps(job, wanted, history, method, compile, guidances)
        costliest = (max(orders), method)
        salt = identify(job, wanted, (compile, bool(guidances), costliest))
        found = Trials(job, denoiser, salt, None if place is None else place / "trials.jsonl")
        measured = recall(place, salt, max_age)
        if measured is None:
            plain = found
            if guidances:  # where streams are not told apart, other graphs run
                alone = keep_steps(job, wanted, history, method, compile, ())
                plain = Trials(job, alone)
            measured = measure(job, plain, wanted, max_age, costliest, salt)
            if guidances:
                measured = add_guided_costs(measured, found, costliest, guidances[0])
            if place is not None:
                measured.save(place)
        segments = Segments(measured, max_age, orders, method)
        rng = np.random.default_rng(seed)

        def tell(point: Point) -> None:
            bar.update()
            bar.set_postfix_str(f"{point.ms:.0f} ms, {point.psnr_db:.1f} dB")

        streams = (None, *guidances)
        others = on_other_seeds(found, OTHER_SEEDS)
        search = Search(
            measured, segments, found, others, wanted, cache_bytes, streams, rng, tell
        )
        search_front(search, ms, quality, trials)
        full_ms = measured.num_steps * measured.step_ms
        front = Front.of(filter(None, search.points.values()), measured.sites, full_ms)
        if fit:
            bar.set_postfix_str("fitting")
            other_job = replace(job, seed=job.seed + FIT_SEEDS, batch_size=len(job.inputs))
            front = fit_front(front, other_job, (found, others), place, ms)

    front = judge(front, on_other_seeds(found, HELD_OUT))
    if place is not None:
        front.save(place)
    return Optimum(
        front.within(ms=ms, quality=quality, cache_bytes=cache_bytes), front, measured
    )


def search_front(search: Search, ms: float | None, quality: float | None, trials: int) -> None:
    """Spend the trials: within the time, about the quality, or evenly over all times."""
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


def on_other_seeds(trials: Trials, offset: int) -> Trials:
    """Trials of the same job on other seeds, in the same file."""
    job = replace(trials.job, seed=trials.job.seed + offset)
    return Trials(job, trials.denoiser, f"{trials.salt}{offset}-", trials.file)


def judge(front: Front, held: Trials) -> Front:
    """The front with what its tables do on seeds that the search has not seen."""
    return front.with_held_out(
        [held.psnr(p.schedule, front.sites, p.guidance) for p in front.points]
    )
