"""What rivals decide, run by dqar_fx: their schedules as branch tables."""

from collections.abc import Iterator
from typing import Any

import dqar_fx
from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import THEIRS, Contender
from benchmarks.pareto.recipes import Transformed
from benchmarks.pareto.rivals.of_cache_dit import make_mask
from benchmarks.pareto.rivals.of_diffusers import measure_magnitudes
from dqar_fx import Schedule, prior_art

MAX_AGE = 3
"""SmoothCache's lookahead."""


def list_theirs(steps: int, mode: str) -> Iterator[Contender]:
    """What rivals decide, as branch tables."""
    for setting, recipe in list_static(steps):
        yield Contender(f"{setting}, by dqar_fx", THEIRS, steps, recipe, mode)


def list_static(steps: int) -> Iterator[tuple[str, Transformed]]:
    """Setting and recipe of each schedule."""
    for every in (2, 3, 4):
        yield f"FORA N={every}", fixed(prior_art.fora(steps, every), fora=every)
    for every, order in ((3, 1), (3, 2), (4, 1), (4, 2)):
        schedule = prior_art.taylorseer(steps, every, order)
        yield f"TaylorSeer N={every} O={order}", fixed(schedule, every=every, order=order)
    for threshold in (0.03, 0.05, 0.08, 0.18):
        yield f"SmoothCache {threshold:g}", smooth(threshold)
    for policy in ("medium", "fast"):
        for order in (0, 1):
            seer = f" + TaylorSeer O={order}" if order else ""
            yield f"cache-dit {policy} mask{seer}", masked(policy, order)
    for threshold, max_skip in ((0.06, 1), (0.06, 3)):
        yield f"MagCache {threshold:g}, at most {max_skip}", magnitudes(threshold, max_skip)


def fixed(schedule: Schedule, **identity: Any) -> Transformed:
    """A schedule that needs no pipeline."""
    return Transformed(lambda bench: schedule, {"rule": "fixed", **identity})


def smooth(threshold: float) -> Transformed:
    """SmoothCache, calibrated on the pipeline."""

    def make(bench: Bench) -> Schedule:
        return prior_art.smoothcache(bench.once(calibrate), threshold, lookahead=MAX_AGE)

    return Transformed(make, {"rule": "smoothcache", "threshold": threshold})


def calibrate(bench: Bench) -> dqar_fx.Calibration:
    """What SmoothCache decides on, of pictures that are not compared."""
    return dqar_fx.calibrate(
        bench.pipe,
        list(bench.protocol.classes),
        num_steps=bench.steps,
        max_age=MAX_AGE,
        cells_per_step=0,
        sites="all",
        seed=1,
        guidance_scale=bench.protocol.guidance,
        output_type="pt",
    )


def masked(policy: str | int, order: int) -> Transformed:
    """cache-dit's step mask, with all blocks but the first as one span."""

    def make(bench: Bench) -> Schedule:
        last = len(bench.original.transformer_blocks)  # type: ignore[arg-type]
        schedule = prior_art.step_mask(
            make_mask(policy, bench.steps), sites=f"transformer_blocks.1:{last}"
        )
        return schedule.forecast(order) if order else schedule

    return Transformed(make, {"rule": "step_mask", "policy": policy, "order": order})


def magnitudes(threshold: float, max_skip: int) -> Transformed:
    """MagCache with the ratios that diffusers' calibration measures."""

    def make(bench: Bench) -> Schedule:
        ratios = bench.once(measure_magnitudes)
        return prior_art.magcache(ratios, threshold=threshold, max_skip=max_skip)

    return Transformed(make, {"rule": "magcache", "numbers": [threshold, max_skip]})
