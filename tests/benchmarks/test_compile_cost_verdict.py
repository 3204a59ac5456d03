"""benchmarks.compile_cost: the table and the verdict, from rows made up."""

import dataclasses

import pytest
import torch
from expecttest import assert_expected_inline

from benchmarks.compile_cost.rows import Measured, Point, Row
from benchmarks.compile_cost.table import (
    format_notes,
    format_points,
    format_verdict,
    list_claims,
)
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import describe_machine

MACHINE = describe_machine(torch.device("cpu"))
MEASURED = Measured(1.0, 8.0, 0.1, 2.0, 7, 0, 0, 0, 5)
SMALL, LARGE = Geometry(layers=28), Geometry(layers=56)
WHOLE = Point("whole", SMALL, 1)
CENTRE = Point("regional", SMALL, 50)
DEEPER = Point("regional", LARGE, 50)
LONGER = Point("regional", SMALL, 100)


@pytest.fixture
def claims():
    return list_claims([WHOLE, CENTRE], (Geometry(layers=12), SMALL, LARGE), (20, 50, 100))


def measured(point, *cold_s, **counts):
    """Cold rows with these times, each followed by a warm one."""
    whole = {"transform_s": None, "distinct_rows": 1} if point.kind == "whole" else {}
    for repeat, seconds in enumerate(cold_s):
        for phase, divisor in (("cold", 1), ("warm", 4)):
            found = dataclasses.replace(
                MEASURED, compile_s=seconds / divisor, **whole, **counts
            )
            yield Row(point, phase, repeat, 9.0, found, None, MACHINE)


def failed(point):
    return Row(point, "cold", 0, 9.0, None, "RuntimeError: no", MACHINE)


def test_table_medians_ranges_and_failures():
    rows = [*measured(WHOLE, 40.0, graphs=1), *measured(CENTRE, 16.0, 20.0, 12.0)]
    assert_expected_inline(
        format_points([*rows, failed(DEEPER)]),
        """\
| what     |   layers |   steps |   rows |   transform s |   cold s (range) |   warm s (range) |   graphs |   breaks |   recompiles |   runs |
|----------|----------|---------|--------|---------------|------------------|------------------|----------|----------|--------------|--------|
| whole    |       28 |       - |      1 |             - |             40.0 |             10.0 |        1 |        0 |            0 |    1+1 |
| regional |       28 |      50 |      5 |          1.00 | 16.0 (12.0-20.0) |    4.0 (3.0-5.0) |        7 |        0 |            0 |    3+3 |
| regional |       56 |      50 |      - |             - |           failed |           failed |        - |        - |            - |    0+0 |""",  # noqa: E501
    )


def test_notes_tell_failures():
    notes = format_notes([failed(DEEPER)])
    assert notes[-1] == "failed: 56 layers, 50 steps, cold, repeat 1: RuntimeError: no"


def test_verdict_of_what_holds(claims):
    rows = [
        *measured(WHOLE, 40.0, 44.0),
        *measured(CENTRE, 16.0, 20.0),
        *measured(DEEPER, 18.0, 21.0),
        *measured(LONGER, 16.0, 21.0),
    ]
    assert format_verdict(rows, claims) == [
        "cold seconds, 28 layers, 50 steps, regional by whole: 0.429 (0.400-0.455, pairs: 2), "
        "at most 0.50: holds",
        "cold seconds, 50 steps, 56 by 28 layers: 1.083 (1.050-1.125, pairs: 2), at most "
        "1.20: holds",
        "cold seconds, 28 layers, 100 by 50 steps: 1.028 (1.000-1.050, pairs: 2), at most "
        "1.05: holds",
        "0 graph breaks and 0 recompiles in 16 processes, none allowed: holds",
    ]


def test_verdict_of_what_does_not_hold(claims):
    rows = [
        *measured(WHOLE, 30.0),
        *measured(CENTRE, 16.0),
        *measured(DEEPER, 20.0),
        *measured(LONGER, 17.0, recompiles=1),
    ]
    verdict = format_verdict(rows, claims)
    assert all(line.endswith("does not hold") for line in verdict)
    assert verdict[-1].startswith("0 graph breaks and 2 recompiles in 8 processes")


def test_verdict_pairs_repeats_and_not_places(claims):
    """A repeat that failed is no partner of another repeat."""
    first, second = (row for row in measured(WHOLE, 10.0, 40.0) if row.phase == "cold")
    lost = dataclasses.replace(first, measured=None, error="RuntimeError: no")
    rows = [lost, second, *measured(CENTRE, 1.0, 10.0)]
    assert "(0.250-0.250, pairs: 1)" in format_verdict(rows, claims)[0]


def test_verdict_of_what_was_not_measured(claims):
    rows = [*measured(WHOLE, 30.0), failed(CENTRE)]
    verdict = format_verdict(rows, claims)
    assert [line.rpartition(": ")[2] for line in verdict[:3]] == ["not measured"] * 3


def test_verdict_without_larger_ones_claims_nothing_of_growth():
    alone = list_claims([WHOLE, CENTRE], (SMALL,), (50,))
    rows = [*measured(WHOLE, 30.0), *measured(CENTRE, 10.0)]
    assert len(format_verdict(rows, alone)) == 2
