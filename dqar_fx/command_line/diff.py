"""``dqar-fx diff``: what two steps of a schedule, or two schedules at a step, differ in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.costs.rows import with_schedule
from dqar_fx.errors import StepError
from dqar_fx.inspect import graph_diff

from .prepare import prepare, read_schedule

if TYPE_CHECKING:
    import argparse


def show_diff(options: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    steps = options.steps_shown
    if options.against is None and len(steps) == 1:
        raise StepError(
            f"one step, {steps[0]}: give two such as {steps[0]}:{steps[0] + 1}, or --against "
            "SCHEDULE to compare two schedules"
        )
    before = prepare(options)
    after = before
    if options.against is not None:
        after = with_schedule(before, read_schedule(options, options.against))
    diff = graph_diff(before.row_graph(steps[0]), after.row_graph(steps[-1]))
    if options.json:
        print(diff.to_json())
    else:
        print(diff or "the same graph")
    return int(options.exit_code and bool(diff))
