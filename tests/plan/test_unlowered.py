"""Rows that are bound without lowering are those that run."""

import pytest
import torch

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.plan.plan import select_calls
from dqar_fx.plan.unlowered import UnloweredRegions
from tests.helpers.models import make_dit

STEPS = 4
SCHEDULES = {
    "linear": (Schedule.linear(STEPS, 1), "attention"),
    "nested": (Schedule.interval(STEPS, 2), ["block", "all"]),
    "forecast": (Schedule.interval(STEPS, 3, warmup=2).forecast(1), "attention"),
}


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=2)


def prepared(case, name):
    schedule, sites = SCHEDULES[name]
    return dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0), sites=sites)


@pytest.mark.parametrize("name", SCHEDULES)
def test_unlowered_calls_are_those_that_run(name, case):
    program = prepared(case, name).program
    plan, regions = program.plan, UnloweredRegions()
    for row in program.table.rows:
        lowered = select_calls(
            plan, row, lambda *given: program.lowering.variant(plan, *given)
        )
        for found, expected in zip(regions.calls(plan, row), lowered, strict=True):
            assert found.variant.kept == expected.variant.kept
            assert found._replace(variant=None) == expected._replace(variant=None)


def test_unlowered_regions_are_specialised_once_and_not_run(case):
    program = prepared(case, "linear").program
    regions, row = UnloweredRegions(), program.table.row(0)
    first, again = (regions.calls(program.plan, row) for _ in range(2))
    assert all(a.variant is b.variant for a, b in zip(first, again, strict=True))
    assert not program.variants
    with pytest.raises(AssertionError, match="not lowered is not run"):
        first[0].variant.function(torch.zeros(1))
