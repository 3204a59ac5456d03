"""Runs passes: times them, checks the graph after each, and reports what each one did."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .editing import make_module
from .operators import count_changes, count_operators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import fx

    Pass = Callable[[fx.GraphModule], int] | partial[int]
    Observer = Callable[[str, str, fx.GraphModule], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one graph.

    Attributes:
        name: Name of the pass.
        graph: Which graph it ran on, ``step`` or the name of a conditioning stage.
        rewrites: The number it returned.
        nodes: Nodes of the graph before and after.
        ms: Time of the pass itself, in milliseconds.
        delta: Operators gained or, negative, lost, by name, as `operators.count_operators`
            has them: what moved into a graph inside of this one is not lost.
    """

    name: str
    graph: str
    rewrites: int
    nodes: tuple[int, int]
    ms: float
    delta: Mapping[str, int] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The report in one line, and what it changed in another."""
        changes = ", ".join(f"{name} {count:+d}" for name, count in self.delta.items())
        return [str(self), f"    {changes}"] if changes else [str(self)]

    def __str__(self) -> str:
        before, after = self.nodes
        return (
            f"{self.name:<20s} {self.graph:<16s} {self.rewrites:5d} rewrites  "
            f"nodes {before} -> {after} ({after - before:+d})  {self.ms:.1f} ms"
        )


def ignore(when: str, name: str, gm: fx.GraphModule) -> None:
    """The observer that does nothing."""


def run_passes(
    gm: fx.GraphModule,
    passes: Iterable[Pass],
    graph: str = "step",
    observe: Observer | None = ignore,
) -> list[PassReport]:
    """Run passes in order, in place; one report each.

    Args:
        gm: The graph.
        passes: What to run.
        graph: Its name in the reports.
        observe: Is shown the graph ``"before"`` and ``"after"`` each pass, with the pass's
            name, and that of the graph if it is not the step. None where a graph is only
            looked at: nothing is shown or logged.
    """
    return [run_pass(gm, each, graph, observe) for each in passes]


def run_pass(
    gm: fx.GraphModule, each: Pass, graph: str = "step", observe: Observer | None = ignore
) -> PassReport:
    """Run one pass, then lint and recompile the graph."""
    function: Any = each.func if isinstance(each, partial) else each
    name: str = function.__name__
    shown = name if graph == "step" else f"{name}.{graph}"
    if observe is not None:
        observe("before", shown, gm)
    operators, before, start = count_operators(gm), len(gm.graph.nodes), perf_counter()
    rewrites = each(gm)
    ms = 1e3 * (perf_counter() - start)
    gm.graph.lint()
    gm.recompile()
    nodes = (before, len(gm.graph.nodes))
    delta = count_changes(operators, count_operators(gm))
    report = PassReport(name, graph, rewrites, nodes, ms, delta)
    if observe is not None:
        logger.debug("%s", report)
        observe("after", shown, gm)
    return report


def fork(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own over the same parameters and submodules."""
    return make_module(gm, copy.deepcopy(gm.graph))
