"""What each block of each row differs in from a row that computes everything.

A row is bound to variants of regions as `Program` does it. Equal blocks under equal actions
have one variant, so that a trajectory of many rows and blocks has few distinct differences.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dqar_fx.builder.outline import outline
from dqar_fx.costs.workload import all_computed, return_nothing
from dqar_fx.inspect.amounts import Amounts, sum_up
from dqar_fx.inspect.compare import Comparison
from dqar_fx.passes.support.blocks import find_blocks
from dqar_fx.passes.support.runner import fork
from dqar_fx.plan.plan import Variant, bind, make_plan
from dqar_fx.program.lowering import specialise_region
from dqar_fx.schedule.action import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx

    from dqar_fx.inspect import GraphDiff
    from dqar_fx.program.program import Program

    Key = tuple[str, tuple[Action, ...], tuple[bool, ...]]


@dataclass(frozen=True)
class Call:
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

    Args:
        program: Captured; its table does not matter.

    Attributes:
        calls: The calls of a step, in order.
        found: The distinct differences so far.
    """

    def __init__(self, program: Program) -> None:
        outlined = fork(program.guarded)
        outline(outlined, find_blocks(program.captured.gm.graph.nodes))
        self._plan = make_plan(outlined)
        self.calls = self._read_calls(outlined)
        self.found: list[BlockDiff] = []
        self._graphs: dict[Key, tuple[fx.GraphModule, tuple[int, ...]]] = {}
        self._known: dict[tuple[Key, Key], int] = {}
        self._rows: dict[tuple[Action, ...], tuple[int, ...]] = {}
        self._computed = self._bind(all_computed(program))

    def row(self, actions: tuple[Action, ...]) -> tuple[int, ...]:
        """For each call its difference, a position in ``found``."""
        if actions not in self._rows:
            pairs = zip(self._computed, self._bind(actions), self.calls, strict=True)
            self._rows[actions] = tuple(self._compare(*each) for each in pairs)
        return self._rows[actions]

    def delta(self, actions: tuple[Action, ...]) -> dict[str, int]:
        """Operators that a row has more, or, negative, fewer; by name."""
        total = Counter[str]()
        for number in self.row(actions):
            total.update(self.found[number].result.delta)
        return {name: total[name] for name in sorted(total) if total[name]}

    def saved(self, actions: tuple[Action, ...]) -> Amounts:
        """What a row does not take."""
        return sum_up(self.found[number].result.saved for number in self.row(actions))

    def saved_by_module(self, rows: Iterable[tuple[Action, ...]]) -> dict[str, Amounts]:
        """What rows do not take, by module path."""
        total: dict[str, Amounts] = {}
        times = Counter(
            (call.block, number)
            for actions in rows
            for call, number in zip(self.calls, self.row(actions), strict=True)
        )
        for (block, number), count in times.items():
            diff = self.found[number]
            for path, each in diff.result.by_module.items():
                own = moved(path, diff.first, block)
                total[own] = total.get(own, Amounts()) + scaled(each, count)
        return total

    def _read_calls(self, outlined: fx.GraphModule) -> tuple[Call, ...]:
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
            calls.append(Call(planned.region, block, first[planned.region], planned.columns))
        return tuple(calls)

    def _bind(self, actions: tuple[Action, ...]) -> list[Key]:
        """The variant of each call."""
        calls = self._plan.calls
        # nothing of a call that is left out is live
        keys: dict[int, Key] = {
            number: (
                call.region,
                (Action.COMPUTE,) * len(call.columns),
                (False,) * len(call.outputs),
            )
            for number, call in enumerate(calls)
        }
        numbered = [replace(call, region=str(number)) for number, call in enumerate(calls)]

        def specialised(
            number: str, mine: tuple[Action, ...], live: tuple[bool, ...]
        ) -> Variant:
            key = (calls[int(number)].region, mine, live)
            keys[int(number)] = key
            gm, kept = self._graph(key)
            return Variant(gm, return_nothing, kept, "")

        bind(replace(self._plan, calls=tuple(numbered)), actions, specialised, fill_nothing)
        return [keys[number] for number in range(len(calls))]

    def _graph(self, key: Key) -> tuple[fx.GraphModule, tuple[int, ...]]:
        if key not in self._graphs:
            region, actions, live = key
            gm, kept, _ = specialise_region(self._plan.regions[region], actions, live)
            self._graphs[key] = gm, kept
        return self._graphs[key]

    def _compare(self, before: Key, after: Key, call: Call) -> int:
        if (before, after) not in self._known:
            graphs = (self._graph(before)[0], self._graph(after)[0])
            self._known[before, after] = len(self.found)
            self.found.append(BlockDiff(Comparison(*graphs), call.first))
        return self._known[before, after]


def fill_nothing(_: Any) -> None:
    """In the place of tensors, which nobody reads."""


def moved(path: str, first: str, block: str) -> str:
    """The path of a module of one block in another, equal one."""
    inside = path == first or path.startswith(f"{first}.")
    return block + path[len(first) :] if first and inside else path


def scaled(amounts: Amounts, times: int) -> Amounts:
    """So many times."""
    return Amounts(
        amounts.macs * times,
        amounts.parameter_bytes * times,
        amounts.activation_bytes * times,
    )
