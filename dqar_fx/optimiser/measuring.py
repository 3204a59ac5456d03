"""All that a search goes by, measured in one pipeline, or read where that was done before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.calibration.calibrate import count_calls
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import ScheduleError
from dqar_fx.guidance.guidance import Guidance
from dqar_fx.program.compile_options import CompileOptions
from dqar_fx.schedule.forecast import MAX_ORDER, points_of
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.transform import transform

from .costs import measure_costs
from .measured import Measured, fit_sensitivity, spread_gain
from .observe import Notes, ObserverBuilder
from .trials import Job, Trials, run_attached

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GAINS = 16
"""Steps at which the way from a denoiser's error to the pictures is measured."""
TRIES = 6
"""Reuses of single sites that are tried at each step."""


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
    job: Job,
    trials: Trials,
    sites: str | tuple[str, ...],
    max_age: int,
    forecast: tuple[int, str],
    identity: str,
) -> Measured:
    """All that a search goes by; costs are those of forecasts of that order and method."""
    num_calls = trials.denoiser.table.num_steps
    reach = 3 * max_age + 2  # the third step back of a parabola, at the largest distances
    notes = Notes(num_calls, reach, TRIES, np.random.default_rng(job.seed))
    model = job.pipeline.transformer
    observing = Denoiser(model, ObserverBuilder(notes, sites), CompileOptions.of(None))
    run_attached(job, observing)
    unseen = [step for step in range(num_calls) if not notes.gram[:, step, step].any()]
    if unseen:
        raise ScheduleError(
            f"the pipeline called its denoiser at {num_calls - len(unseen)} of {num_calls} "
            "steps. Expected one call or several per step; give num_steps as the number of "
            "timesteps"
        )
    kinds = tuple(site.kind for site in notes.sites)
    step_ms, saved_ms = measure_costs(trials, kinds, num_calls, forecast)
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
    return replace(first, gain=measure_gain(first, trials))


def add_guided_costs(
    measured: Measured, trials: Trials, forecast: tuple[int, str], guidance: Guidance
) -> Measured:
    """The same, with what steps cost where streams are told apart: both called, or one."""
    read = np.ones(measured.num_steps, bool)
    read[0] = False
    left_out = replace(guidance, output=Schedule.from_actions(read), keep="output")
    costs = [
        measure_costs(trials, measured.kinds, measured.num_steps, forecast, each)
        for each in (None, left_out)
    ]
    return replace(
        measured,
        guided_ms=np.array([ms for ms, _ in costs]),
        guided_saved_ms=np.stack([saved for _, saved in costs]),
    )


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
