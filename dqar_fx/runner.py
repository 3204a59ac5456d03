"""Runs passes: times them, checks the graph after each, and reports what each one did."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Pass = Callable[[fx.GraphModule], int] | partial[int]


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one graph.

    Attributes:
        name: Name of the pass.
        graph: Which graph it ran on, ``step`` or the name of a conditioning stage.
        rewrites: The number it returned.
        nodes: Nodes of the graph before and after.
        ms: Time of the pass itself, in milliseconds.
    """

    name: str
    graph: str
    rewrites: int
    nodes: tuple[int, int]
    ms: float

    def __str__(self) -> str:
        before, after = self.nodes
        return (
            f"{self.name:<20s} {self.graph:<16s} {self.rewrites:5d} rewrites  "
            f"nodes {before} -> {after} ({after - before:+d})  {self.ms:.1f} ms"
        )


def run_passes(
    gm: fx.GraphModule, passes: Iterable[Pass], graph: str = "step"
) -> list[PassReport]:
    """Run passes in order, in place; one report each."""
    return [run_pass(gm, each, graph) for each in passes]


def run_pass(gm: fx.GraphModule, each: Pass, graph: str = "step") -> PassReport:
    """Run one pass, then lint and recompile the graph."""
    function: Any = each.func if isinstance(each, partial) else each
    before, start = len(gm.graph.nodes), perf_counter()
    rewrites = each(gm)
    ms = 1e3 * (perf_counter() - start)
    gm.graph.lint()
    gm.recompile()
    return PassReport(function.__name__, graph, rewrites, (before, len(gm.graph.nodes)), ms)


def fork(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own over the same parameters and submodules."""
    return fx.GraphModule(gm, copy.deepcopy(gm.graph))
