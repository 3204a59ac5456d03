"""How a transformation grows with layers and steps: counted, not timed.

A count ``f`` is linear in layers if ``f(8) - f(4) == 2 * (f(4) - f(2))``. Models are narrow
and on the meta device: what grows is the graph.
"""

import importlib
import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import fx

import dqar_fx
from benchmarks.harness.geometry import Geometry
from dqar_fx import Schedule
from dqar_fx.plan.plan import bind, select_calls
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.rules import LinearRule

DEPTHS = (2, 4, 8)
STEPS = 50
SOURCES = ("/dqar_fx/", "/passes/", "/fx/graph.py", "/fx/node.py", "/fx/graph_module.py")
"""Where calls are counted: the library, and what it edits graphs with."""


BUILDER = importlib.import_module("dqar_fx.builder.tiers")


@cache
def captured(layers):
    """A model, the inputs of one call, and its graph."""
    geometry = Geometry(layers=layers, width=8, heads=2, tokens=4, batch=2)
    call = {
        "hidden_states": geometry.draw_latent(),
        "timestep": torch.tensor([900, 900]),
        "class_labels": geometry.labels(),
    }
    example = {name: value.to("meta") for name, value in call.items()}
    model = geometry.build().to("meta")
    return model, example, BUILDER.capture(model, (), example)


class Built:
    """A transformed model, and what was called for that, capture left out."""

    def __init__(self, layers, steps=STEPS):
        model, example, graph = captured(layers)
        denoiser = dqar_fx.transform(model, Schedule.linear(steps), compile="regional")
        self.calls = Counter()
        with (
            patch.object(BUILDER, "capture", lambda *_, **__: graph),
            counted(self.calls),
        ):
            self.program = denoiser.prepare(**example)

    def report(self, name, graph="step"):
        (report,) = [
            each
            for each in self.program.explanation.reports
            if (each.name, each.graph) == (name, graph)
        ]
        return report

    @property
    def rows(self):
        return self.program.table.rows

    def bind_rows(self):
        """The bound calls of each distinct row."""
        program = self.program

        def specialised(region, *case):
            return program.lowering.variant(program.plan, region, *case)

        return [
            bind(select_calls(program.plan, row, specialised), lambda kept: kept)
            for row in self.rows
        ]


@contextmanager
def counted(calls):
    """Count calls of functions of `SOURCES`, and what these call of built-in ones."""

    def note(frame, event, function):
        path = frame.f_code.co_filename
        if event in ("call", "c_call") and any(part in path for part in SOURCES):
            inner = f" {function.__name__}" if event == "c_call" else ""
            calls[f"{Path(path).name}:{frame.f_code.co_name}{inner}"] += 1

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


@cache
def built(layers, steps=STEPS):
    return Built(layers, steps)


def by_depth(count):
    return [count(built(layers)) for layers in DEPTHS]


def per_layer(count):
    """What each further layer adds; fails where it is not the same for all."""
    low, middle, high = by_depth(count)
    assert (high - middle) == 2 * (middle - low), (low, middle, high)
    return (middle - low) / (DEPTHS[1] - DEPTHS[0])


# ---- layers ------------------------------------------------------------------------------


def test_sites_are_one_per_layer():
    assert by_depth(lambda each: len(each.program.table.sites)) == list(DEPTHS)


@pytest.mark.parametrize(
    ("name", "rewrites"),
    [
        ("insert_guards", 1),  # one site
        ("outline_regions", 1),  # one region
        ("unify_layouts", 0),  # the first block alone reads what is strided
    ],
)
def test_rewrites_of_passes_per_layer(name, rewrites):
    assert per_layer(lambda each: each.report(name).rewrites) == rewrites


@pytest.mark.parametrize("name", ["normalise", "hoist_conditioning"])
def test_rewrites_of_passes_are_linear_in_layers(name):
    assert per_layer(lambda each: each.report(name).rewrites) > 0


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize(
    "name", ["normalise", "hoist_conditioning", "insert_guards", "outline_regions"]
)
def test_nodes_before_and_after_passes_are_linear_in_layers(name, end):
    assert per_layer(lambda each: each.report(name).nodes[end]) > 0


def test_plan_is_one_call_per_layer_and_two():
    assert by_depth(lambda each: len(each.program.plan.calls)) == [n + 2 for n in DEPTHS]


def test_arguments_of_all_calls_are_linear_in_layers():
    def arguments(each):
        return sum(len(call.inputs) + len(call.static) for call in each.program.plan.calls)

    assert per_layer(arguments) > 0


def test_regions_and_stages_are_the_same_for_all_depths():
    assert by_depth(lambda each: len(each.program.plan.regions)) == [3, 3, 3]
    assert len(set(by_depth(lambda each: len(each.program.plan.stages)))) == 1


def test_slots_are_one_per_layer():
    assert by_depth(lambda each: len(each.program.slot_specs)) == list(DEPTHS)
    assert per_layer(lambda each: each.program.cache_bytes) == 2 * 4 * 8 * 4


def test_variants_of_all_rows_are_the_same_for_all_depths():
    for layers in DEPTHS:
        built(layers).bind_rows()
    assert len(set(by_depth(lambda each: len(each.program.variants)))) == 1


@pytest.mark.parametrize("layers", DEPTHS)
def test_bound_calls_are_those_of_the_plan_in_every_row(layers):
    rows = built(layers).bind_rows()
    assert [len(calls) for calls in rows] == [layers + 2] * len(built(layers).rows)


def test_functions_called_are_linear_in_layers():
    """No function is called more often for a layer of a deep model than for one of a flat."""
    low, middle, high = by_depth(lambda each: each.calls)
    assert sum(high.values()) > 10_000
    excess = {
        name: (low[name], middle[name], calls)
        for name, calls in high.items()
        if calls - middle[name] > 2 * (middle[name] - low[name]) * 1.02 + 16
    }
    assert not excess


def test_functions_called_tell_quadratic_ones():
    """The comparison above can fail."""
    calls = Counter()
    graph = fx.Graph()
    with counted(calls):
        for _ in range(3):
            graph.placeholder("x")
    assert calls["graph.py:placeholder"] == 3


# ---- steps -------------------------------------------------------------------------------


def test_steps_change_neither_regions_nor_variants_nor_calls():
    few, many = built(4), built(4, 1000)
    few.bind_rows()
    many.bind_rows()
    assert list(few.program.plan.regions) == list(many.program.plan.regions)
    assert sorted(few.program.variants) == sorted(many.program.variants)
    assert few.program.plan.calls == many.program.plan.calls


def test_steps_call_no_function_of_a_pass_again():
    few, many = built(4).calls, built(4, 1000).calls
    passes = [name for name in few if name.startswith(("graph.py", "graphs.py", "node.py"))]
    assert passes
    assert {name: many[name] for name in passes} == {name: few[name] for name in passes}


@pytest.mark.parametrize("layers", [4, 112])
@pytest.mark.parametrize("steps", [50, 1000])
def test_linear_table_of_many_steps(layers, steps):
    table = Schedule.linear(steps).resolve([f"blocks.{i}" for i in range(layers)])
    assert table.actions.shape == (steps, layers)
    assert (table.actions[0] != Action.REUSE).all()
    assert (table.actions[-1] == Action.REUSE).all()
    stored = (table.actions == Action.STORE).sum(axis=0)
    assert (stored == 1).all()  # what is never refreshed is stored once


@pytest.mark.parametrize("layers", [4, 28, 112])
def test_distinct_rows_are_bounded_by_layers_not_by_steps(layers):
    sites = [f"blocks.{i}" for i in range(layers)]
    rows = [len(Schedule.linear(steps).resolve(sites).rows) for steps in (500, 1000, 2000)]
    assert max(rows) <= 2 * layers + 1


def test_rules_are_asked_once_per_step():
    asked = []

    class Asked(LinearRule):
        def may_reuse(self, moment):
            asked.append(moment.step)
            return super().may_reuse(moment)

    table = Schedule(1000, Asked(5, 500)).resolve([f"blocks.{i}" for i in range(112)])
    assert asked == list(range(1, 1000))
    assert np.unique(table.actions).tolist() == sorted(
        map(int, (Action.COMPUTE, Action.STORE, Action.REUSE))
    )
