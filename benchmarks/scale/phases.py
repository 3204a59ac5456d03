"""What one transformation takes of the processor, phase by phase.

Time of the processor, not of the clock: whatever else runs on the machine is not counted.
"""

import gc
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import dqar_fx
from benchmarks.harness.geometry import Geometry, draw_timesteps
from dqar_fx.plan.plan import bind, select_calls
from dqar_fx.program.program import Program

META = torch.device("meta")
BINDINGS = 5
"""Times that all rows are bound; the fastest counts, since each takes milliseconds."""
PHASES = {
    "capture": "torch.export",
    "match": "finding the sites",
    "passes": "all passes, with a check of the graph after each, and its forks",
    "table": "resolving the schedule and verifying the table",
    "plan": "reading the plan off the outlined graph",
    "transform": "all of these together",
    "specialise": "the distinct graphs of all rows, which would be compiled",
    "bind": "binding the plan to one distinct row once these are known, the mean of all",
}
TIMED = {
    "capture": "capture",
    "find_sites": "match",
    "find_around": "match",
    "run_passes": "passes",
    "fork": "passes",
    "outline": "passes",
    "make_plan": "plan",
}
"""Functions that a transformation calls, none from within another, and their phases."""


@dataclass(frozen=True)
class Growth:
    """What a transformation took and gave.

    Attributes:
        layers: Of the model.
        steps: Of the linear schedule.
        seconds: By phase, a key of `PHASES`.
        nodes: Of the captured graph.
        calls: Of the plan.
        regions: Distinct ones.
        distinct_rows: Of the branch table.
        variants: Distinct graphs that would be compiled for all rows.
    """

    layers: int
    steps: int
    seconds: dict[str, float]
    nodes: int
    calls: int
    regions: int
    distinct_rows: int
    variants: int


@torch.no_grad()
def measure(geometry: Geometry, steps: int) -> Growth:
    """Transform once, and bind every distinct row."""
    model, call = build(geometry)
    gc.collect()  # of what was measured before: not counted
    with timed_phases() as seconds:
        start = time.process_time()
        denoiser = dqar_fx.transform(
            model, dqar_fx.Schedule.linear(steps), compile="regional", example_inputs=call
        )
        seconds["transform"] = time.process_time() - start
        program = denoiser.program
        first_s = bind_rows(program)
        later_s = min(bind_rows(program) for _ in range(BINDINGS))
        seconds["specialise"] = first_s - later_s
        seconds["bind"] = later_s / len(program.table.rows)
    return Growth(
        layers=geometry.layers,
        steps=steps,
        seconds={phase: seconds[phase] for phase in PHASES},
        nodes=len(program.captured.gm.graph.nodes),
        calls=len(program.plan.calls),
        regions=len(program.plan.regions),
        distinct_rows=len(program.table.rows),
        variants=len(program.variants),
    )


def build(geometry: Geometry) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model without memory, and the inputs of one call."""
    call = {
        "hidden_states": geometry.draw_latent(),
        "timestep": draw_timesteps(1).expand(geometry.batch),
        "class_labels": geometry.labels(),
    }
    return geometry.build().to(META), {name: value.to(META) for name, value in call.items()}


def bind_rows(program: Program) -> float:
    """Time of binding the plan to each distinct row."""
    specialised = partial(program.lowering.variant, program.plan)
    start = time.process_time()
    for row in program.table.rows:
        bind(select_calls(program.plan, row, specialised), lambda static: static)
    return time.process_time() - start


@contextmanager
def timed_phases() -> Iterator[dict[str, float]]:
    """Add up the processor's time in each phase while inside."""
    seconds = dict.fromkeys(PHASES, 0.0)
    module = importlib.import_module("dqar_fx.builder.builder")
    with ExitStack() as stack:
        for name, phase in TIMED.items():
            function = timed(getattr(module, name), seconds, phase)
            stack.enter_context(patch.object(module, name, function))
        resolve = timed(dqar_fx.Schedule.resolve, seconds, "table")
        stack.enter_context(patch.object(dqar_fx.Schedule, "resolve", resolve))
        yield seconds


def timed(
    function: Callable[..., Any], seconds: dict[str, float], phase: str
) -> Callable[..., Any]:
    """A function whose time is added to a phase."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[phase] += time.process_time() - start

    return run
