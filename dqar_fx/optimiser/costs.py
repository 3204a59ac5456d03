"""What a step costs, and what leaving out each kind of site saves: measured in a pipeline."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.schedule.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dqar_fx.guidance.guidance import Guidance

    from .trials import Trials


def measure_costs(
    trials: Trials,
    kinds: Sequence[str],
    num_steps: int,
    forecast: tuple[int, str],
    guidance: Guidance | None = None,
) -> tuple[float, NDArray[np.float64]]:
    """Milliseconds of a step that computes all, and what each site saves when it does not.

    Steps that compute all stand between steps that leave out one kind, or all, so that both
    see the same machine. The first trajectory compiles; the second counts.

    Args:
        trials: The pipeline, and the denoiser to time.
        kinds: Kind of each site.
        num_steps: Steps of the trajectory.
        forecast: Order and method of what stands in for a site: reading several kept values
            takes time, too.
        guidance: What the unconditional stream does; None for what it does already.
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
    return step_ms, share_out(saved, kinds, names)


def share_out(
    saved: dict[frozenset[str], float], kinds: Sequence[str], names: Sequence[str]
) -> NDArray[np.float64]:
    """Per site its share of what its kind saves; all kinds together save what all save."""
    whole = saved.get(frozenset(names), 0.0)
    each = {name: saved.get(frozenset({name}), 0.0) for name in names}
    if len(names) > 1:
        last = names[-1]
        each[last] = max(whole - sum(ms for name, ms in each.items() if name != last), 0.0)
    counts = {name: list(kinds).count(name) for name in names}
    return np.array([each[kind] / counts[kind] for kind in kinds])


def time_steps(
    trials: Trials, schedule: Schedule, num_steps: int, guidance: Guidance | None
) -> list[float]:
    """Milliseconds of each step in the denoiser, the streams of a step added up."""
    times: list[float] = []

    def timed(call: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            wait_for(device)
            start = perf_counter()
            result = call(*args, **kwargs)
            wait_for(device)
            times.append(1e3 * (perf_counter() - start))
            return result

        return run

    trials.pictures(schedule, guidance, around=timed)
    batches = -(-len(trials.job.inputs) // trials.job.batch_size)
    streams = max(len(times) // (num_steps * batches), 1)
    sums = np.array(times[: num_steps * batches * streams]).reshape(
        batches, num_steps, streams
    )
    return [float(ms) for ms in np.median(sums.sum(axis=2), axis=0)]


def wait_for(device: torch.device) -> None:
    """Let a device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
