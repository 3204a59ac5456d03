"""Measuring in a pipeline what a step costs, and what leaving out each kind of site saves."""

from __future__ import annotations

from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.schedule.forecast import points_of
from dqar_fx.schedule.schedule import Schedule

from .patterns import Pattern, Prices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.guidance.guidance import Guidance

    from .trials import ScheduleTrials

TURNS = 8
"""How often each kind of step is timed for each order."""


def measure_costs(
    trials: ScheduleTrials,
    kinds: Sequence[str],
    num_steps: int,
    forecast: tuple[int, str],
    guidance: Guidance | None = None,
) -> tuple[float, Floats]:
    """Measure how long a step takes, and how much time each site saves by not computing.

    Steps that compute everything alternate with steps that leave out one kind or all kinds, so
    that both see the machine in the same state. The first trajectory compiles; the second
    counts.

    Args:
        trials: The pipeline, and the denoiser to time.
        kinds: Kind of each site.
        num_steps: Steps of the trajectory.
        forecast: Order and method of the forecast that replaces a site: reading several kept
            values takes time, too.
        guidance: What the unconditional stream does; None for what it does already.

    Returns:
        Milliseconds of a step that computes everything, and float64 ``[sites]``, the
        milliseconds that each site saves.
    """
    order, method = forecast
    names = list(dict.fromkeys(kinds))
    patterns = [frozenset(names), *(frozenset({name}) for name in names[:-1])]
    rows = [
        patterns[step // 2 % len(patterns)] if step % 2 else None for step in range(num_steps)
    ]
    masks = [[row is not None and kind in row for kind in kinds] for row in rows]
    schedule = Schedule.from_actions(np.array(masks, bool))
    if order:
        schedule = schedule.forecast(order, method)
    trials.pictures(schedule, guidance)
    times = time_steps(trials, schedule, num_steps, guidance)
    by_row: dict[frozenset[str] | None, list[float]] = {}
    for row, ms in zip(rows[2:], times[2:], strict=True):  # the first two only fill the slots
        by_row.setdefault(row, []).append(ms)
    step_ms = median(by_row[None])
    saved = {row: max(step_ms - median(ms), 0.0) for row, ms in by_row.items() if row}
    return step_ms, share_savings(saved, kinds, names)


def share_savings(
    saved: dict[frozenset[str], float], kinds: Sequence[str], names: Sequence[str]
) -> Floats:
    """Share out what each kind saves among its sites, which together save what all kinds do.

    Args:
        saved: Milliseconds that leaving out some kinds saves, by the kinds.
        kinds: Kind of each site.
        names: All kinds; that of the last follows from the others.

    Returns:
        float64 ``[sites]``: milliseconds that each site saves.
    """
    whole = saved.get(frozenset(names), 0.0)
    each = {name: saved.get(frozenset({name}), 0.0) for name in names}
    if len(names) > 1:
        last = names[-1]
        each[last] = max(whole - sum(ms for name, ms in each.items() if name != last), 0.0)
    counts = {name: list(kinds).count(name) for name in names}
    return np.array([each[kind] / counts[kind] for kind in kinds])


def measure_prices(
    denoiser: Denoiser,
    run: Callable[[Denoiser, int], Any],
    method: str,
    orders: Sequence[int],
    sites: str | tuple[str, ...],
) -> Prices:
    """Measure what steps cost that compute, keep, and forecast by each order, in turns.

    Args:
        denoiser: The denoiser to time, whose graphs keep enough for every order.
        run: Runs a denoiser for so many steps, in one batch.
        method: How to forecast.
        orders: The orders; 0 is reuse.
        sites: As for ``transform``.
    """
    times: dict[str, list[float]] = {}
    cache_bytes = {}
    for order in orders:
        letters = priced_letters(method, order)
        timed = denoiser.with_schedule(Pattern(letters, order).schedule(method, sites))
        run(timed, len(letters))  # compiles
        found = time_calls(timed, partial(run, timed, len(letters)))
        cache_bytes[order] = timed.cache_bytes
        by_step = np.array(found).reshape(len(letters), -1).sum(axis=1)
        for name, ms in zip(letters, by_step.tolist(), strict=True):
            times.setdefault(name if name in "CS" else str(order), []).append(ms)
    read_ms = {order: median(times[str(order)]) for order in orders}
    return Prices(median(times["C"]), median(times["S"]), read_ms, cache_bytes)


def priced_letters(method: str, order: int) -> str:
    """A run in which steps that read, that compute, and that keep take turns."""
    letter = "F" if order else "R"
    letters = "S" * points_of(method, order) + f"{letter}CS" * TURNS
    return letters[:-1] + letter  # what is kept has to be read


def time_steps(
    trials: ScheduleTrials, schedule: Schedule, num_steps: int, guidance: Guidance | None
) -> list[float]:
    """Measure the median milliseconds of each step in the denoiser, all streams together."""
    denoiser = trials.of(schedule, guidance)
    times = time_calls(denoiser, lambda: trials.job.run(denoiser))
    batches = -(-len(trials.job.inputs) // trials.job.batch_size)
    streams = max(len(times) // (num_steps * batches), 1)
    sums = np.array(times[: num_steps * batches * streams]).reshape(
        batches, num_steps, streams
    )
    return [float(ms) for ms in np.median(sums.sum(axis=2), axis=0)]


def time_calls(denoiser: Denoiser, run: Callable[[], Any]) -> list[float]:
    """Measure the milliseconds of each call of a denoiser in a run."""
    call, device = denoiser.forward, denoiser.device
    times: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        wait_for(device)
        start = perf_counter()
        result = call(*args, **kwargs)
        wait_for(device)
        times.append(1e3 * (perf_counter() - start))
        return result

    denoiser.forward = timed
    run()
    denoiser.forward = call
    return times


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
