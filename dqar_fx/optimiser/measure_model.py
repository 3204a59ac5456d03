"""Measuring in one pipeline what a search goes by, or reading it from an earlier search."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.calibration.observe import ObservedDenoiser
from dqar_fx.calibration.pipeline_run import count_timesteps
from dqar_fx.capture.capture import capture
from dqar_fx.errors import ScheduleError
from dqar_fx.guidance.guidance import Guidance
from dqar_fx.schedule.forecast import MAX_ORDER, points_of
from dqar_fx.schedule.noise import noise_as_set
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.transform import transform

from .measurements import Measurements, fit_sensitivity, spread_gain
from .site_products import ProductObserver, ProductRecord
from .step_costs import measure_costs
from .trials import ScheduleTrials

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.denoiser.denoiser import Denoiser

    from .trials import PipelineJob

NUM_GAINS = 16
"""Number of steps at which it is measured what the denoiser's error does to the pictures."""
REUSES_PER_STEP = 6
"""Number of sites whose reuse is tried at each step."""


def transform_for_trials(
    job: PipelineJob,
    sites: str | tuple[str, ...],
    history: int,
    method: str,
    compile: Any,
    guidances: Sequence[Guidance],
) -> Denoiser:
    """Make a denoiser whose graphs keep enough steps for every table that is tried.

    Raises:
        ScheduleError: Some sites lie inside of others.
    """
    num_calls = count_timesteps(job.pipeline.scheduler, job.num_steps)
    order = next(o for o in range(MAX_ORDER + 1) if points_of(method, o) >= history)
    plain = Schedule.interval(num_calls, 2, warmup=history)
    schedule = plain.forecast(order, method) if order else plain
    same = None  # where there is guidance: two streams that do the same
    if guidances:
        same = Guidance(batched=guidances[0].batched, stream=guidances[0].stream)
    denoiser = transform(
        job.pipeline.transformer, schedule, sites=sites, compile=compile, guidance=same
    )
    ScheduleTrials(job, denoiser).capture()
    if any(denoiser.table.around):
        raise ScheduleError(
            f"sites={sites!r} has sites inside of others, whose errors do not add up. "
            "Optimise one kind at a time: 'all' (attention and feed-forward), 'block', 'span'"
        )
    return denoiser


def measure_model(
    job: PipelineJob,
    trials: ScheduleTrials,
    sites: str | tuple[str, ...],
    max_age: int,
    forecast: tuple[int, str],
    identity: str,
) -> Measurements:
    """Measure all that a search goes by.

    Raises:
        ScheduleError: The pipeline did not call its denoiser at every step.
    """
    num_calls = trials.denoiser.table.num_steps
    reach = 3 * max_age + 2  # the third step back of a parabola, at the largest distances
    record = ProductRecord(num_calls, reach, REUSES_PER_STEP, np.random.default_rng(job.seed))
    model = job.pipeline.transformer
    denoiser = ObservedDenoiser(
        model,
        lambda fork, args, kwargs: ProductObserver(capture(fork, args, kwargs), sites, record),
    )
    scheduler = copy.deepcopy(job.pipeline.scheduler)
    job.run(denoiser, scheduler)
    missing = [step for step in range(num_calls) if not record.gram[:, step, step].any()]
    if missing:
        raise ScheduleError(
            f"the pipeline called its denoiser at {num_calls - len(missing)} of {num_calls} "
            "steps. Expected one call or several per step; give num_steps as the number of "
            "timesteps"
        )
    kinds = tuple(site.kind for site in record.sites)
    step_ms, saved_ms = measure_costs(trials, kinds, num_calls, forecast)
    without_gain = Measurements(
        sites=tuple(site.path for site in record.sites),
        kinds=kinds,
        site_bytes=tuple(sum(s.nbytes for s in site.kept) for site in record.sites),
        gram=record.gram,
        sensitivity=fit_sensitivity(record.reuses, num_calls, len(record.sites)),
        gain=np.ones(num_calls),
        step_ms=step_ms,
        saved_ms=saved_ms,
        fingerprint=Fingerprint.of(model),
        identity=f"{identity}-{max_age}",
        noise=read_noise_levels(scheduler, num_calls),
    )
    return replace(without_gain, gain=measure_gain(without_gain, trials))


def read_noise_levels(scheduler: Any, num_calls: int) -> Floats:
    """The signal-to-noise ratio at each call: float64 ``[calls]``, empty if unknown."""
    try:
        noise = noise_as_set(scheduler)
    except ScheduleError:
        return np.zeros(0)
    return noise if len(noise) == num_calls else np.zeros(0)


def add_guided_costs(
    measured: Measurements,
    trials: ScheduleTrials,
    forecast: tuple[int, str],
    guidance: Guidance,
) -> Measurements:
    """Add what steps cost where streams are told apart, with both called and with one."""
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


def measure_gain(measured: Measurements, trials: ScheduleTrials) -> Floats:
    """Measure the gain of each step: float64 ``[steps]``, see `Measurements`.

    It is the error of the pictures when that step alone reuses everything, by the error that
    the measurements predict for it where the gain is one.
    """
    steps = np.unique(np.linspace(1, measured.num_steps - 1, NUM_GAINS).round().astype(int))
    known = {}
    for step in steps.tolist():
        reused = np.zeros(measured.num_steps, bool)
        reused[step] = True
        other = trials.pictures(Schedule.from_actions(reused))
        error = (trials.right - other).double().square().mean().sqrt().item()
        known[step] = error / measured.errors(step, [step - 1], 0, "taylor").sum()
    return spread_gain(known, measured.num_steps)


def recall(folder: Path | None, identity: str, max_age: int) -> Measurements | None:
    """Read what an earlier search in the folder has measured; None if there is nothing.

    Raises:
        ScheduleError: The earlier search was of another model, scheduler or job.
    """
    if folder is None or not (folder / "measured.json").exists():
        return None
    measured = Measurements.load(folder)
    if measured.identity != f"{identity}-{max_age}":
        raise ScheduleError(
            f"{folder} holds measurements of another model, scheduler or job: "
            f"{measured.num_steps} steps, {len(measured.sites)} sites. Inputs, steps, seed, "
            "sites, max_age and the pipeline's arguments count. Give another folder"
        )
    return measured


def identify(job: PipelineJob, sites: str | tuple[str, ...], lowering: Any) -> str:
    """A digest that differs for another model, scheduler, job or lowering: 16 characters."""
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
