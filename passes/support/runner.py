"""Runs passes: times them, checks the graph after each, and reports what each one did."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import fx

from .editing import copy_graph, make_module
from .operators import count_changes, count_operators

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping

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
    operators, reports = count_operators(gm), list[PassReport]()
    for each in passes:
        report = run_pass(gm, each, graph, observe, operators)
        operators.update(report.delta)
        reports.append(report)
    return reports


def run_pass(
    gm: fx.GraphModule,
    each: Pass,
    graph: str = "step",
    observe: Observer | None = ignore,
    operators: Counter[str] | None = None,
) -> PassReport:
    """Run one pass, then lint and recompile the graph if the pass has changed it.

    ``operators`` are those of the graph; None to count them.
    """
    function: Any = each.func if isinstance(each, partial) else each
    name: str = function.__name__
    shown = name if graph == "step" else f"{name}.{graph}"
    if observe is not None:
        observe("before", shown, gm)
    operators = count_operators(gm) if operators is None else operators
    before, start = len(gm.graph.nodes), perf_counter()
    rewrites = each(gm)
    ms = 1e3 * (perf_counter() - start)
    delta: Mapping[str, int] = {}
    if rewrites:
        gm.graph.lint()
        gm.recompile()
        delta = count_changes(operators, count_operators(gm))
    nodes = (before, len(gm.graph.nodes))
    report = PassReport(name, graph, rewrites, nodes, ms, delta)
    if observe is not None:
        logger.debug("%s", report)
        observe("after", shown, gm)
    return report


def fork(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own over the same parameters and submodules."""
    return make_module(gm, copy_graph(gm.graph))


def over_same_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """Another module over the same graph, for passes that give their module a graph anew."""
    made = make_module(gm, fx.Graph())
    for own, theirs in zip(holders(made), holders(gm), strict=True):
        own.update(theirs)
    made.graph, gm.graph.owning_module = gm.graph, gm
    return made


def holders(gm: fx.GraphModule) -> tuple[dict[str, Any], ...]:
    """What a module keeps its parts, parameters and buffers in."""
    return gm._modules, gm._parameters, gm._buffers
