"""The search for a solver and a table together, nearest to a teacher's pictures in a time."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.forecast import points_of
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.solver.noise_levels import NoiseLevels
from dqar_fx.transform import transform

from .front import Front, Point
from .measure_model import identify
from .optimise_table import FIT_SEEDS, HELD_OUT_SEEDS, OTHER_SEEDS
from .optimum import Optimum
from .patterns import Prices
from .solver_search import Judged, SolverSearch
from .solver_space import SolverSpace
from .step_costs import measure_prices
from .teacher import run_with

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dqar_fx.denoiser.denoiser import Denoiser

    from .arguments import Budget, SearchOptions
    from .solver_search import Trial
    from .teacher import Teacher
    from .trials import PipelineJob

LEAST_STEPS = 2
"""Steps of the shortest solver that can be fitted."""


def optimise_solver(
    job: PipelineJob,
    judged_on: tuple[Any, ...],
    budget: Budget,
    options: SearchOptions,
    *,
    teacher: Teacher,
    rounds: int,
) -> Optimum:
    """Find a solver and a table; the arguments are those of `optimise`."""
    sites, method, orders = options.sites, options.method, options.orders
    compile, folder, trials = options.compile, options.folder, options.trials
    levels = NoiseLevels.of(job.pipeline.scheduler)
    teacher.scheduler_for(job.pipeline)  # refuses before the work
    salt = identify(job, sites, (compile, method, tuple(orders), repr(teacher)))
    work = None if folder is None else folder / salt
    with tqdm(total=trials, desc="optimise", disable=not options.progress) as bar:
        bar.set_postfix_str("measuring")
        jobs = list_jobs(job, judged_on)
        denoiser = capture_for_trials(jobs, levels, orders, method, sites, compile)
        path = None if work is None else work / "prices.json"
        prices = read_prices(path)
        if prices is None:
            batch = replace(job, inputs=job.inputs[: job.batch_size])
            run = partial(run_start, batch, levels)
            prices = measure_prices(denoiser, run, method, orders, sites)
            write_prices(prices, path)
        ms = check_time(budget.time_of(prices.computed_ms), prices)
        bar.set_postfix_str("the teacher's pictures")
        fitted_on, compared_on, held_out = (
            Judged(each, teacher.pictures(each)) for each in jobs
        )

        def report(trial: Trial) -> None:
            bar.update(len(search.trials) - bar.n)
            text = f"{trial.pattern.letters}: {trial.psnr_db:.1f} dB after {trial.rounds}"
            bar.set_postfix_str(text)

        search = SolverSearch(
            denoiser=denoiser,
            levels=levels,
            prices=prices,
            fitted_on=fitted_on,
            compared_on=compared_on,
            orders=orders,
            method=method,
            sites=sites,
            report=report,
            folder=work,
        )
        best, plain = search.search(ms, trials, rounds, budget.cache_bytes)
        bar.set_postfix_str("what each part is worth")
        ablation = search.ablate(best, plain, held_out, rounds)

    without_db = ablation["solver without reuse"]
    points = [
        make_point(search, plain, without_db),
        make_point(search, best, ablation.get("all", without_db)),
    ]
    full_ms, model = plain.pattern.ms(prices), Fingerprint.of(job.pipeline.transformer)
    front = Front.of(points, denoiser.table.sites, full_ms, model)
    found = Optimum(front.points[-1], front, None, str(teacher), ablation)
    if folder is not None:
        found.save(folder)
    return found


def list_jobs(job: PipelineJob, judged_on: tuple[Any, ...]) -> list[PipelineJob]:
    """What is fitted on, what fits are compared on, and what they are judged on."""
    whole = replace(job, batch_size=len(job.inputs))
    return [
        replace(whole, seed=job.seed + FIT_SEEDS),
        replace(whole, seed=job.seed + OTHER_SEEDS),
        replace(job, inputs=judged_on, seed=job.seed + HELD_OUT_SEEDS),
    ]


def capture_for_trials(
    jobs: Sequence[PipelineJob],
    levels: NoiseLevels,
    orders: Sequence[int],
    method: str,
    sites: str | tuple[str, ...],
    compile: Any,
) -> Denoiser:
    """A denoiser whose graphs keep enough for every order, captured as all jobs call it."""
    order = max(orders)
    history = points_of(method, order)
    schedule = Schedule.interval(every=2, warmup=history)
    forecast = schedule.forecast(order, method) if order else schedule
    model = jobs[0].pipeline.transformer
    denoiser = transform(model, forecast, sites=sites, compile=compile)
    for job in jobs:
        run_start(job, levels, denoiser, history + 2)
    return denoiser


def run_start(
    job: PipelineJob, levels: NoiseLevels, denoiser: Denoiser, num_steps: int
) -> None:
    """Run a denoiser with a solver as it is before a fit."""
    space = SolverSpace(levels, num_steps)
    run_with(job, space.scheduler(next(space.starts())), num_steps, denoiser)


def make_point(search: SolverSearch, trial: Trial, held_out_db: float) -> Point:
    """What a trial is on a front, given the decibels of its held-out pictures."""
    student, vector = search.student(trial.pattern), np.array(trial.vector)
    schedule = student.schedule(vector)
    assert schedule is not None
    return Point(
        ms=trial.pattern.ms(search.prices),
        psnr_db=trial.psnr_db,
        predicted_error=None,
        cache_bytes=trial.pattern.cache_bytes(search.prices),
        schedule=schedule,
        held_out_db=held_out_db,
        scheduler=student.scheduler(vector),
    )


def check_time(ms: float | None, prices: Prices) -> float:
    """The time of a budget.

    Raises:
        ScheduleError: It is too short for a solver.
    """
    assert ms is not None, "a search with a teacher has a time"
    least = LEAST_STEPS * prices.computed_ms
    if ms < least * (1 - 1e-9):
        raise ScheduleError(
            f"a budget of {ms:.3g} ms: a step that computes everything takes "
            f"{prices.computed_ms:.3g} ms, and a solver needs {LEAST_STEPS} of them. Give at "
            f"least ms={least:.3g}, or evaluations={LEAST_STEPS}"
        )
    return ms


def write_prices(prices: Prices, path: Path | None) -> None:
    """Write what steps cost, as far as there is a place for it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(vars(prices)) + "\n")


def read_prices(path: Path | None) -> Prices | None:
    """Read what `write_prices` wrote; None if there is nothing."""
    if path is None or not path.exists():
        return None
    row = json.loads(path.read_text())
    by_order = (
        {int(k): v for k, v in row[name].items()} for name in ("forecast_ms", "cache_bytes")
    )
    return Prices(row["computed_ms"], row["kept_ms"], *by_order)
