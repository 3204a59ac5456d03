"""What blocks differ in adds up to what whole rows differ in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dqar_fx import Schedule, graph_diff
from dqar_fx.costs.rows import all_computed
from dqar_fx.inspect.amounts import add_amounts
from dqar_fx.inspect.html.blocks import BlockDiffs
from tests.helpers.models import MAKERS
from tests.helpers.slow_cases import slow_but
from tests.helpers.small_reports import FORECAST, STEPS, make_report

SCHEDULES = {
    "linear": (Schedule.linear(STEPS, warmup=2), "attention"),
    "all": (Schedule.linear(STEPS, warmup=2, max_age=3), "all"),
    "forecast": (FORECAST, "block"),
    "span": (Schedule.interval(STEPS, 2), "span"),
}


@pytest.mark.parametrize("schedule", slow_but("linear", "all", of=SCHEDULES))
@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_blocks_add_up_to_rows(name, schedule):
    rule, sites = SCHEDULES[schedule]
    report = make_report(name, rule, sites=sites)
    program = report.denoiser.program
    diffs = BlockDiffs(program)
    computed = Schedule.compute_all(1).resolve(program.table.sites)
    whole = program.with_table(computed).row_graph(0)
    assert computed.row(0) == all_computed(program)
    for row in program.table.rows:
        step = [program.table.row(k) for k in range(STEPS)].index(row)
        expected = graph_diff(whole, program.row_graph(step))
        staged = conditioning_of(expected)  # evaluated apart from rows
        delta = Counter(expected.delta)
        delta.update(change.operator for change in staged)
        assert diffs.delta(row) == {name: n for name, n in delta.items() if n}
        saved = diffs.saved(row)
        assert saved.macs == expected.macs - sum(c.macs for c in staged)
        assert saved.activation_bytes == expected.activation_bytes - sum(
            change.activation_bytes for change in staged
        )
        by_module = diffs.saved_by_module([row])
        assert add_amounts(by_module.values()) == saved
        if not staged:
            assert saved.parameter_bytes == expected.parameter_bytes
            assert counted_by(by_module) == counted_by(expected.by_module)
        letters = "".join(action.letter for action in row)
        counted = next(each for each in report.rows if each.actions == letters)
        assert diffs.saved(row).macs == report.computed.macs - counted.cost.macs


def counted_by(modules):
    """MACs and parameters by module; activations that no module makes are its operands'."""
    pairs = {path: (each.macs, each.parameter_bytes) for path, each in modules.items()}
    return {path: pair for path, pair in pairs.items() if any(pair)}


def conditioning_of(diff):
    """What a diff removes of stages, and the stages themselves."""
    return [
        change
        for changes in diff.removed.values()
        for change in changes
        if change.kind == "stage" or any(place.startswith("stage") for place in change.within)
    ]


@pytest.mark.slow
def test_equal_blocks_share_their_differences():
    few, many = (
        BlockDiffs(
            make_report(schedule=Schedule.from_actions("CRCR"), compile=how).denoiser.program
        )
        for how in (None, "whole")
    )
    for diffs in (few, many):
        rows = [diffs.row(row) for row in (diffs_rows(diffs))]
        blocks = [call.region for call in diffs.calls if call.block]
        assert len(set(blocks)) < len(blocks)
        assert len(diffs.found) < sum(map(len, rows))


def diffs_rows(diffs):
    """All computed, and all reused."""
    sites = [f"site{column}" for call in diffs.calls for column in call.columns]
    return Schedule.from_actions("CR").resolve(sites).rows


def test_module_paths_are_those_of_each_block():
    report = make_report(schedule=Schedule.from_actions(["CC", "CC", "CR", "CC", "CC"]))
    program = report.denoiser.program
    saved = BlockDiffs(program).saved_by_module([program.table.row(1)])
    assert {path.rpartition(".attn1")[0] for path, each in saved.items() if each.macs} == {
        "transformer_blocks.2"
    }
    assert replace(report, denoiser=None) == report
