"""A plan at other sizes of the inputs than it was made for.

Layouts follow the plan: what a stage or a region gives at these sizes is what the next one
reads. A region that is called with several layouts, which happened to be one when it was
captured, becomes several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dqar_fx.passes.fix_sizes import fix_sizes, settle
from dqar_fx.passes.support.graphs import describe_value, graph_outputs
from dqar_fx.passes.support.runner import fork

from .plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from dqar_fx.passes.support.sizes import Sizes

    from .plan import PlannedCall, Stage


class PlanFixer:
    """Fixes plans at sizes.

    Args:
        sizes: The value of each symbol.
        settles: Whether what stages give is made contiguous.
    """

    def __init__(self, sizes: Sizes, *, settles: bool) -> None:
        self._sizes, self._settles = sizes, settles

    def fix(self, plan: Plan, inputs: Sequence[Any]) -> tuple[Plan, list[Any]]:
        """A plan at the sizes, and its outputs' values; fake tensors as inputs."""
        values = plan.place_inputs(inputs)
        stages = tuple(self._fix_stage(stage, values) for stage in plan.stages)
        regions: dict[str, fx.GraphModule] = {}
        known: dict[tuple[str, ...], str] = {}
        calls = tuple(
            self._fix_call(plan, call, values, regions, known) for call in plan.calls
        )
        fixed = Plan(regions, stages, calls, plan.inputs, plan.outputs, plan.size)
        return fixed, [values[number] for number in plan.outputs]

    def _fix_stage(self, stage: Stage, values: list[Any]) -> Stage:
        given = [values[number] for number in stage.inputs]
        gm, results = self._fix_graph(stage.gm, given)
        plan, _ = self.fix(stage.plan, given)
        for number, result in zip(stage.outputs, results, strict=True):
            if number is not None:
                values[number] = settle(result) if self._settles else result
        return replace(stage, gm=gm, plan=plan)

    def _fix_call(
        self,
        plan: Plan,
        call: PlannedCall,
        values: list[Any],
        regions: dict[str, fx.GraphModule],
        known: dict[tuple[str, ...], str],
    ) -> PlannedCall:
        given = [values[number] for number in call.inputs]
        key = (call.region, *map(describe_value, given))
        if key not in known:
            taken = [name for (region, *_), name in known.items() if region == call.region]
            name = known[key] = f"{call.region}_{len(taken)}" if taken else call.region
            regions[name], _ = self._fix_graph(plan.regions[call.region], given)
        gm = regions[known[key]]
        results = [node.meta["val"] for node in graph_outputs(gm.graph)]
        for number, result in zip(call.outputs, results, strict=True):
            if number is not None:
                values[number] = result
        return replace(call, region=known[key])

    def _fix_graph(
        self, gm: fx.GraphModule, inputs: Sequence[Any]
    ) -> tuple[fx.GraphModule, list[Any]]:
        fixed = fork(gm)
        fixed.meta["free"] = gm
        fix_sizes(fixed, self._sizes, inputs)
        return fixed, [node.meta["val"] for node in graph_outputs(fixed.graph)]
