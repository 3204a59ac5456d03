"""Regions specialised for rows of actions, and not lowered: what rows would run.

Liveness, costs and drawings look at the graphs of rows that may never run. They bind a row as
`bind` does, to variants that are specialised once and that nothing compiles, shows or reports.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dqar_fx.passes import specialise
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.passes.support.runner import fork, run_pass
from dqar_fx.passes.support.tracing_lock import TRACING

from .plan import Variant, select_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from dqar_fx.passes.support.runner import Observer, PassReport
    from dqar_fx.schedule.action import Action

    from .plan import LiveCall, Plan, Specialised

    Live = tuple[bool, ...]


class UnloweredRegions:
    """The specialised graphs of regions, each made once.

    Args:
        prepack: Rewrites a specialised graph so that it takes packed weights, and gives their
            positions among its inputs; None where no weight is packed.
    """

    def __init__(
        self, prepack: Callable[[fx.GraphModule], Sequence[int]] | None = None
    ) -> None:
        self._prepack = prepack
        self._known: dict[tuple[fx.GraphModule, tuple[Action, ...], Live], Variant] = {}

    def variant(
        self, region: fx.GraphModule, actions: tuple[Action, ...], live: Live
    ) -> Variant:
        """Specialise a region, the same once only; its function refuses to run."""
        key = (region, actions, live)
        known = self._known.get(key)
        if known is not None:
            return known
        with TRACING:
            gm, kept, _ = specialise_region(region, actions, live)
            packed = () if self._prepack is None else self._prepack(gm)
        made = Variant(gm, refuse_to_run, kept, "", frozenset(kept[i] for i in packed))
        return self._known.setdefault(key, made)

    def variants_of(self, plan: Plan) -> Specialised:
        """Give the variants of a plan's regions by name, as `bind` asks for them."""
        return lambda region, *case: self.variant(plan.regions[region], *case)

    def calls(self, plan: Plan, actions: Sequence[int]) -> list[LiveCall]:
        """Select the calls that a row of a plan runs, in order."""
        return select_calls(plan, actions, self.variants_of(plan))


def specialise_region(
    region: fx.GraphModule,
    actions: Sequence[Action],
    live: Sequence[bool],
    observe: Observer | None = None,
) -> tuple[fx.GraphModule, tuple[int, ...], PassReport]:
    """Make a region's graph for actions, giving live outputs only.

    Args:
        region: The region; it is not changed.
        actions: One action per site of the region.
        live: Per output, whether anything reads it.
        observe: Is shown the graph before and after the pass; None to show and log nothing.

    Returns:
        The graph, the positions of the region's inputs that it still takes, and the report.
    """
    gm = fork(region)
    outputs = zip(graph_outputs(gm.graph), live, strict=True)
    gm.graph.output_node().args = (tuple(node for node, is_live in outputs if is_live),)
    before = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    report = run_pass(gm, partial(specialise, actions=actions), "region", observe)
    after = {node.name for node in gm.graph.find_nodes(op="placeholder")}
    return gm, tuple(i for i, name in enumerate(before) if name in after), report


def refuse_to_run(*_: Any) -> NoReturn:
    """Stand where a lowered region would be called.

    Raises:
        AssertionError: Always: what is not lowered is only looked at.
    """
    raise AssertionError("a region that was not lowered is not run")
