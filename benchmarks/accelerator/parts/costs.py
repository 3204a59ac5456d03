"""What compilation costs, by layers and rows, and how well times are predicted."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch._inductor.utils import fresh_cache

import dqar_fx
from benchmarks.accelerator.cases import Case, Finding, Stage
from benchmarks.accelerator.race import run_trajectory
from benchmarks.accelerator.scales import Scale
from benchmarks.accelerator.subjects import make_dit
from benchmarks.compile_cost.process import measure
from benchmarks.compile_cost.rows import Measured, Point
from benchmarks.cost_model import BAR, make_schedules

GROWTH = 1.25
"""What compilation may take more for more layers, or more distinct rows."""
STEPS, MORE_STEPS = 20, 50
PREDICTED_STEPS = 12
BUDGET_S = 3.0
"""Seconds to measure regions."""


def list_cases(scale: Scale) -> list[Case]:
    """Predictions, then cold compilations of two points each."""
    needs = ("compiles",) if scale.keywords is None else ()
    few, many = (
        Point("regional", replace(scale.compiled, layers=n), STEPS) for n in scale.layers
    )
    return [
        Case("predicted by measured regions", "predicted", predict, needs),
        Case("cold, by layers", "compile", partial(compare_points, (few, many)), needs),
        Case(
            "cold, by rows",
            "compile",
            partial(compare_points, (few, replace(few, steps=MORE_STEPS))),
            needs,
        ),
        Case(
            "cold, untransformed as a whole",
            "whole",
            partial(compile_whole, replace(many, kind="whole", steps=1)),
            needs,
        ),
    ]


def compile_cold(point: Point, stage: Stage) -> Measured:
    """Compile with an empty cache, and nothing known of earlier graphs."""
    torch._dynamo.reset()
    with fresh_cache():
        return measure(point, stage.device, **stage.scale.in_mode({}))


def compare_points(points: Sequence[Point], stage: Stage) -> Finding:
    """Whether the second point takes no longer to compile than the first."""
    first, second = (compile_cold(point, stage) for point in points)
    growth = second.compile_s / first.compile_s
    word = (
        f"{points[0]}: {first.compile_s:.1f} s, {points[1]}: {second.compile_s:.1f} s; "
        f"{first.graphs} and {second.graphs} graphs"
    )
    values = {str(p): asdict(m) for p, m in zip(points, (first, second), strict=True)}
    return Finding(growth <= GROWTH, word, values)


def compile_whole(point: Point, stage: Stage) -> Finding:
    """What the untransformed model takes as one graph."""
    found = compile_cold(point, stage)
    return Finding(None, f"{point}: {found.compile_s:.1f} s", asdict(found))


def predict(stage: Stage) -> Finding:
    """Predicted against measured trajectories of schedules that nothing was fitted to."""
    subject = make_dit("compiled", stage.scale.compiled, stage.device, stage.scale.dtype)
    steps, keywords = PREDICTED_STEPS, stage.scale.in_mode({})
    denoiser = dqar_fx.transform(
        subject.model,
        dqar_fx.Schedule.compute_all(steps),
        compile={"unit": "regional", **keywords},
        example_inputs=next(subject.calls(1)),
    )
    schedules = make_schedules(steps, len(denoiser.table.sites))
    budget_s = min(BUDGET_S, stage.scale.case_s)
    profile = dqar_fx.measure_profile(
        denoiser, tuple(schedules.values()), by="regions", budget_s=budget_s
    )
    reports = dqar_fx.compare(denoiser, schedules, device=profile)
    ratios = {}
    for name, schedule in schedules.items():
        own, times = denoiser.with_schedule(schedule), []
        for _ in range(1 + stage.scale.repeats):
            took = run_trajectory(own, list(subject.calls(steps)), stage.device)
            times.append(1e3 * took.device_s)
        ratios[name] = reports[name].ms / sorted(times[1:])[len(times[1:]) // 2]
    largest = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
    is_right = abs(largest - 1) <= BAR
    return Finding(is_right, f"largest error {largest - 1:+.1%} of {len(ratios)}", ratios)
