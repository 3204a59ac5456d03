"""The call that finds a schedule under a budget, and the way of its data."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dqar_fx.calibrate import count_calls
from dqar_fx.denoiser import Denoiser
from dqar_fx.errors import DqarError, ScheduleError
from dqar_fx.fingerprint import Fingerprint
from dqar_fx.forecast import MAX_ORDER, METHODS, points_of
from dqar_fx.guidance import Guidance
from dqar_fx.lowering import CompileOptions
from dqar_fx.schedule import Schedule, check_at_least
from dqar_fx.transform import transform

from .costs import measure_costs
from .front import Front, Point
from .measured import Measured, fit_sensitivity, spread_gain
from .observe import Notes, ObserverBuilder
from .search import Search
from .segments import Segments
from .trials import Job, Trials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.table import BranchTable

LEVELS = (0.3, 0.36, 0.42, 0.5, 0.6, 0.72, 0.85)
"""Shares of the full time at which a front is searched."""
GAINS = 16
"""Steps at which the way from a denoiser's error to the pictures is measured."""
TRIES = 6
"""Reuses of single sites that are tried at each step."""


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
    then tried on pictures and improved. Same inputs and costs give the same tables.

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
        salt = identify(job, wanted, (compile, bool(guidances)))
        found = Trials(job, denoiser, salt, None if place is None else place / "trials.jsonl")
        measured = recall(place, salt, max_age)
        if measured is None:
            measured = measure(job, found, wanted, max_age, salt)
            if place is not None:
                measured.save(place)
        segments = Segments(measured, max_age, orders, method)
        rng = np.random.default_rng(seed)

        def tell(point: Point) -> None:
            bar.update()
            bar.set_postfix_str(f"{point.ms:.0f} ms, {point.psnr_db:.1f} dB")

        streams = (None, *guidances)
        search = Search(measured, segments, found, wanted, cache_bytes, streams, rng, tell)
        search_front(search, ms, quality, trials)

    full_ms = measured.num_steps * measured.step_ms
    front = Front.of(filter(None, search.points.values()), measured.sites, full_ms)
    front = judge(front, job, found, place)
    if place is not None:
        front.save(place)
    return Optimum(
        front.within(ms=ms, quality=quality, cache_bytes=cache_bytes), front, measured
    )


def check_arguments(
    pipeline: Any,
    inputs: Sequence[Any],
    orders: Sequence[int],
    method: str,
    *,
    ms: float | None,
    quality: float | None,
) -> None:
    """Raise for what cannot be optimised."""
    model = getattr(pipeline, "transformer", None)
    if not isinstance(model, torch.nn.Module) or isinstance(model, Denoiser):
        raise DqarError(
            "optimise needs a diffusers pipeline with its own transformer; found "
            f"{type(pipeline).__name__} with a transformer of type {type(model).__name__}"
        )
    if getattr(pipeline, "scheduler", None) is None:
        raise DqarError(f"optimise needs a scheduler, but {type(pipeline).__name__} has none")
    if isinstance(inputs, str) or not len(inputs):
        raise ScheduleError(f"inputs must be several prompts or labels, found {inputs!r}")
    if not orders or not all(isinstance(o, int) and 0 <= o <= MAX_ORDER for o in orders):
        raise ScheduleError(f"orders must be among 0 to {MAX_ORDER}, found {orders!r}")
    if 0 not in orders:
        raise ScheduleError(
            f"orders={tuple(orders)!r} lacks 0: the step after the first can only be reused"
        )
    if method not in METHODS:
        raise ScheduleError(f"forecast {method!r} is unknown; known are {', '.join(METHODS)}")
    for name, value in (("ms", ms), ("quality", quality)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ScheduleError(f"{name} must be a positive number, found {value!r}")


def check_guidances(guidances: Sequence[Guidance]) -> None:
    """Raise for guidance that cannot stand side by side in one search."""
    if not all(isinstance(each, Guidance) for each in guidances):
        raise ScheduleError(f"guidances must be dqar_fx.Guidance, found {guidances!r}")
    if len({(each.batched, each.stream) for each in guidances}) > 1:
        raise ScheduleError("guidances must agree in batched and stream")
    if any(each.unconditional is not None for each in guidances):
        raise ScheduleError(
            "guidances must not bring schedules of the unconditional stream's sites: these "
            "are searched"
        )


def keep_steps(
    job: Job,
    sites: str | tuple[str, ...],
    history: int,
    method: str,
    compile: Any,
    guidances: Sequence[Guidance],
) -> Denoiser:
    """A denoiser whose graphs keep enough steps for every table that is tried."""
    num_calls = count_calls(job.pipeline.scheduler, job.num_steps)
    order = next(o for o in range(MAX_ORDER + 1) if points_of(method, o) >= history)
    plain = Schedule.interval(num_calls, 2, warmup=history)
    schedule = plain.forecast(order, method) if order else plain
    same = None  # where there is guidance: two streams that do the same
    if guidances:
        same = Guidance(batched=guidances[0].batched, stream=guidances[0].stream)
    denoiser = transform(
        job.pipeline.transformer, schedule, sites=sites, compile=compile, guidance=same
    )
    Trials(job, denoiser).capture()
    if any(denoiser.table.around):
        raise ScheduleError(
            f"sites={sites!r} has sites inside of others, whose errors do not add up. "
            "Optimise one kind at a time: 'all' (attention and feed-forward), 'block', 'span'"
        )
    return denoiser


def measure(
    job: Job, trials: Trials, sites: str | tuple[str, ...], max_age: int, identity: str
) -> Measured:
    """All that a search goes by."""
    num_calls = trials.denoiser.table.num_steps
    reach = 3 * max_age + 2  # the third step back of a parabola, at the largest distances
    notes = Notes(num_calls, reach, TRIES, np.random.default_rng(job.seed))
    model, own = job.pipeline.transformer, copy.deepcopy(job.pipeline.scheduler)
    observing = Denoiser(model, ObserverBuilder(notes, sites), CompileOptions.of(None))
    if hasattr(own, "step_index"):
        observing.attach_scheduler(own)
    job.run(observing, own)
    unseen = [step for step in range(num_calls) if not notes.gram[:, step, step].any()]
    if unseen:
        raise ScheduleError(
            f"the pipeline called its denoiser at {num_calls - len(unseen)} of {num_calls} "
            "steps. Expected one call or several per step; give num_steps as the number of "
            "timesteps"
        )
    kinds = tuple(site.kind for site in notes.sites)
    step_ms, saved_ms = measure_costs(trials, kinds, num_calls)
    first = Measured(
        sites=tuple(site.path for site in notes.sites),
        kinds=kinds,
        site_bytes=tuple(sum(s.nbytes for s in site.kept) for site in notes.sites),
        gram=notes.gram,
        sensitivity=fit_sensitivity(notes.tried, num_calls, len(notes.sites)),
        gain=np.ones(num_calls),
        step_ms=step_ms,
        saved_ms=saved_ms,
        fingerprint=Fingerprint.of(model),
        identity=f"{identity}-{max_age}",
    )
    return Measured(**{**vars(first), "gain": measure_gain(first, trials)})


def measure_gain(measured: Measured, trials: Trials) -> Any:
    """``[steps]``: error of the pictures when one step reuses all, by the model's for it."""
    steps = np.unique(np.linspace(1, measured.num_steps - 1, GAINS).round().astype(int))
    known = {}
    for step in steps.tolist():
        reused = np.zeros(measured.num_steps, bool)
        reused[step] = True
        other = trials.pictures(Schedule.from_actions(reused))
        error = (trials.right - other).double().square().mean().sqrt().item()
        known[step] = error / measured.errors(step, [step - 1], 0, "taylor").sum()
    return spread_gain(known, measured.num_steps)


def recall(folder: Path | None, identity: str, max_age: int) -> Measured | None:
    """What an earlier search in the folder has measured.

    Raises:
        ScheduleError: It was of another model, scheduler or job.
    """
    if folder is None or not (folder / "measured.json").exists():
        return None
    measured = Measured.load(folder)
    if measured.identity != f"{identity}-{max_age}":
        raise ScheduleError(
            f"{folder} holds measurements of another model, scheduler or job: "
            f"{measured.num_steps} steps, {len(measured.sites)} sites. Inputs, steps, seed, "
            "sites, max_age and the pipeline's arguments count. Give another folder"
        )
    return measured


def identify(job: Job, sites: str | tuple[str, ...], lowering: Any) -> str:
    """A text that differs for another model, scheduler, job or lowering."""
    scheduler = job.pipeline.scheduler
    facts = json.dumps(
        [
            repr(job.inputs),
            repr(lowering),
            (job.seed, job.num_steps, job.batch_size),
            repr(sorted(job.call.items())),
            repr(sites),
            Fingerprint.of(job.pipeline.transformer).values.tolist(),
            type(scheduler).__name__,
            repr(getattr(scheduler, "config", "")),
        ]
    )
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


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


def judge(front: Front, job: Job, trials: Trials, folder: Path | None) -> Front:
    """The front with what its tables do on seeds that the search has not seen."""
    other = Job(**{**vars(job), "seed": job.seed + 1_000_000})
    file = None if folder is None else folder / "trials.jsonl"
    held = Trials(other, trials.denoiser, trials.salt + "held-out", file)
    return front.with_held_out(
        [held.psnr(p.schedule, front.sites, p.guidance) for p in front.points]
    )
