"""What each block of each row differs in from a row that computes everything.

Equal blocks under equal actions have one variant, so that a trajectory of many rows and blocks
has few distinct differences.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dqar_fx.builder.builder import outline
from dqar_fx.costs.rows import all_computed
from dqar_fx.inspect.amounts import Amounts, add_amounts
from dqar_fx.inspect.compare import Comparison
from dqar_fx.passes.support.blocks import find_blocks
from dqar_fx.passes.support.module_paths import rename_path
from dqar_fx.passes.support.runner import fork
from dqar_fx.plan.plan import make_plan
from dqar_fx.plan.unlowered import UnloweredRegions
from dqar_fx.schedule.action import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx

    from dqar_fx.inspect.graph_diff import GraphDiff
    from dqar_fx.program.program import Program


@dataclass(frozen=True)
class RegionCall:
    """One call of a region.

    Attributes:
        region: Name of the region.
        block: Path of the block; empty for what lies between blocks.
        first: Path of the block whose names the region's graph has.
        columns: Columns of the branch table of its sites.
    """

    region: str
    block: str
    first: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class BlockDiff:
    """One block where everything is computed, and as a row has it.

    Attributes:
        comparison: The two graphs, matched.
        first: Path of the block whose names they have.
    """

    comparison: Comparison
    first: str

    @cached_property
    def result(self) -> GraphDiff:
        """The difference."""
        return self.comparison.result()


class BlockDiffs:
    """The differences of all rows of one program, each distinct one once.

    Attributes:
        calls: The calls of a step, in order.
        found: The distinct differences so far.
    """

    def __init__(self, program: Program) -> None:
        outlined = fork(program.guarded)
        outline(outlined, find_blocks(program.captured.gm.graph.nodes))
        self._plan, self._regions = make_plan(outlined), UnloweredRegions()
        self.calls = self._read_calls(outlined)
        self.found: list[BlockDiff] = []
        self._known: dict[tuple[fx.GraphModule, fx.GraphModule], int] = {}
        self._rows: dict[tuple[Action, ...], tuple[int, ...]] = {}
        self._computed = self._graphs_of(all_computed(program))

    def row(self, actions: tuple[Action, ...]) -> tuple[int, ...]:
        """Give, for each call of a row, the position of its difference in ``found``."""
        if actions not in self._rows:
            pairs = zip(self._computed, self._graphs_of(actions), self.calls, strict=True)
            self._rows[actions] = tuple(self._compare(*each) for each in pairs)
        return self._rows[actions]

    def delta(self, actions: tuple[Action, ...]) -> dict[str, int]:
        """Count the operators that a row has more, or, negative, fewer; by name."""
        total = Counter[str]()
        for number in self.row(actions):
            total.update(self.found[number].result.delta)
        return {name: total[name] for name in sorted(total) if total[name]}

    def saved(self, actions: tuple[Action, ...]) -> Amounts:
        """Count what a row does not take."""
        return add_amounts(self.found[number].result.saved for number in self.row(actions))

    def saved_by_module(self, rows: Iterable[tuple[Action, ...]]) -> dict[str, Amounts]:
        """Count what rows do not take, by module path."""
        total: dict[str, Amounts] = {}
        times = Counter(
            (call.block, number)
            for actions in rows
            for call, number in zip(self.calls, self.row(actions), strict=True)
        )
        for (block, number), count in times.items():
            diff = self.found[number]
            for path, each in diff.result.by_module.items():
                own = rename_path(path, diff.first, block) if diff.first else path
                total[own] = total.get(own, Amounts()) + each * count
        return total

    def _read_calls(self, outlined: fx.GraphModule) -> tuple[RegionCall, ...]:
        nodes = [
            n
            for n in outlined.graph.find_nodes(op="call_module", sort=True)
            if "stage" not in n.meta
        ]
        first: dict[str, str] = {}
        calls = []
        for node, planned in zip(nodes, self._plan.calls, strict=True):
            block = str(node.meta["block"])
            first.setdefault(planned.region, block)
            own = first[planned.region]
            calls.append(RegionCall(planned.region, block, own, planned.columns))
        return tuple(calls)

    def _graphs_of(self, actions: tuple[Action, ...]) -> list[fx.GraphModule]:
        """The graph that each call of a row runs; of one that is left out, nothing is live."""
        live = self._regions.calls(self._plan, actions)
        graphs = {call.number: call.variant.gm for call in live}
        for number, call in enumerate(self._plan.calls):
            if number not in graphs:
                computed = (Action.COMPUTE,) * len(call.columns)
                nothing = (False,) * len(call.outputs)
                region = self._plan.regions[call.region]
                graphs[number] = self._regions.variant(region, computed, nothing).gm
        return [graphs[number] for number in range(len(self.calls))]

    def _compare(self, before: fx.GraphModule, after: fx.GraphModule, call: RegionCall) -> int:
        if (before, after) not in self._known:
            self._known[before, after] = len(self.found)
            self.found.append(BlockDiff(Comparison(before, after), call.first))
        return self._known[before, after]
