"""The graphs of a program: as they were captured, or at the sizes of one call."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.capture.capture import Capture
from dqar_fx.passes import FORMATS, TensorSpec, fix_sizes
from dqar_fx.passes.support.graphs import fake_mode_of
from dqar_fx.passes.support.guards import compute_or_reuse
from dqar_fx.passes.support.runner import fork
from dqar_fx.passes.support.tracing_lock import TRACING
from dqar_fx.plan.fix_plan import PlanFixer

from .free_regions import FreeRegions

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import fx

    from dqar_fx.passes import CacheFormat
    from dqar_fx.passes.support.sizes import Sizes
    from dqar_fx.plan.plan import Plan
    from dqar_fx.plan.slots import SlotKey

    from .explanation import Explanation


@dataclass(frozen=True)
class Graphs:
    """What a program is made of.

    Attributes:
        captured: The model as a graph, untouched.
        guarded: The same with conditioning hoisted and every site guarded.
        plan: The step's stages and regions.
        is_settled: Whether what stages give is made contiguous.
        cache: How sites keep what they keep.
    """

    captured: Capture
    guarded: fx.GraphModule
    plan: Plan
    is_settled: bool = False
    cache: CacheFormat = FORMATS["same"]

    @cached_property
    def free(self) -> FreeRegions:
        """The regions that are compiled for all sizes."""
        symbolic = self.captured.symbolic
        return FreeRegions({} if symbolic is None else symbolic.captured)

    @cached_property
    def slots(self) -> dict[SlotKey, TensorSpec]:
        """All slots that the graphs have inputs for."""
        return slots_of_plan(self.plan)

    @property
    def model(self) -> fx.GraphModule:
        """The captured graph whose parameters are filled in, whatever its sizes are."""
        return self.captured.gm

    @property
    def cast_on(self) -> tuple[str, ...]:
        """Types of the devices for which the graphs are to run without autocast."""
        return self.captured.cast_on

    def explain(self, explanation: Explanation) -> Explanation:
        """An explanation with what sites keep in these graphs."""
        kept = kept_by(self.plan)
        sites = (replace(s, kept=kept.get(s.index, s.kept)) for s in explanation.sites)
        return replace(explanation, sites=tuple(sites))

    def at(self, sizes: Sizes, leaves: Sequence[Any]) -> Graphs:
        """The same graphs at other sizes of the inputs."""
        return GraphsAt.of(self, sizes, leaves)


class CaptureAt(Capture):
    """A captured graph at other sizes, made when it is looked at: what runs does not need it.

    Args:
        origin: The graph as it was captured.
        make: Makes the graph at the sizes.
    """

    def __init__(self, origin: Capture, make: Callable[[], fx.GraphModule]) -> None:
        held = {each.name: getattr(origin, each.name) for each in fields(origin)}
        del held["gm"]
        vars(self).update(held, _make=make)

    @cached_property
    def gm(self) -> fx.GraphModule:
        """The graph."""
        made: fx.GraphModule = vars(self)["_make"]()
        return made

    @property
    def key(self) -> Hashable:
        """What is another one for each graph."""
        key: Hashable = vars(self)["_make"]
        return key


class GraphsAt(Graphs):
    """Graphs at other sizes. Those that only inspection looks at are made when asked for.

    Args:
        origin: The graphs as they were captured.
        sizes: The value of each symbol.
        values: The values of the flat inputs.
    """

    def __init__(self, origin: Graphs, sizes: Sizes, values: Sequence[Any]) -> None:
        self._origin, self._sizes, self._values = origin, sizes, values
        fixer = PlanFixer(sizes, settles=origin.is_settled)
        with fake_mode_of(origin.captured.gm.graph):
            self.__dict__["plan"] = fixer.fix(origin.plan, values)[0]
        same = {"is_settled": origin.is_settled, "cache": origin.cache, "free": origin.free}
        self.__dict__.update(same)

    @property
    def model(self) -> fx.GraphModule:
        """The captured graph whose parameters are filled in, whatever its sizes are."""
        return self._origin.model

    @property
    def cast_on(self) -> tuple[str, ...]:
        """Types of the devices for which the graphs are to run without autocast."""
        return self._origin.cast_on

    def at(self, sizes: Sizes, leaves: Sequence[Any]) -> Graphs:
        """The same graphs at yet other sizes of the inputs."""
        return self._origin.at(sizes, leaves)

    @classmethod
    def of(cls, origin: Graphs, sizes: Sizes, leaves: Sequence[Any]) -> GraphsAt:
        """The graphs at the sizes of these flat inputs."""
        mode = fake_mode_of(origin.captured.gm.graph)
        return cls(origin, sizes, [fake_of(leaf, mode) for leaf in leaves])

    @cached_property
    def captured(self) -> Capture:
        """The model as a graph, untouched."""
        origin = self._origin.captured
        return CaptureAt(origin, lambda: self._fix(origin.gm))

    @cached_property
    def guarded(self) -> fx.GraphModule:
        """The same with conditioning hoisted and every site guarded."""
        return self._fix(self._origin.guarded)

    def _fix(self, gm: fx.GraphModule) -> fx.GraphModule:
        fixed = fork(gm)
        with TRACING:
            fix_sizes(fixed, self._sizes, self._values, settles=self.is_settled)
        return fixed


def slots_of_plan(plan: Plan) -> dict[SlotKey, TensorSpec]:
    """Find the slots that the calls of a plan have inputs for."""
    found: dict[SlotKey, TensorSpec] = {}
    for call in plan.calls:
        inputs = plan.regions[call.region].graph.find_nodes(op="placeholder")
        for static, node in zip(call.static, inputs[len(call.inputs) :], strict=True):
            if isinstance(static, tuple):
                found[static] = TensorSpec.of(node.meta["val"])
    return dict(sorted(found.items()))


def kept_by(plan: Plan) -> dict[int, tuple[TensorSpec, ...]]:
    """What each site keeps, by its column of the branch table."""
    guards = {
        name: region.graph.find_nodes(op="call_function", target=compute_or_reuse)
        for name, region in plan.regions.items()
    }
    return {
        column: guard.meta["site"].kept
        for call in plan.calls
        for column, guard in zip(call.columns, guards[call.region], strict=True)
    }


def fake_of(leaf: Any, mode: Any) -> Any:
    """A fake tensor of an input's layout; anything else as it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    with mode:
        return torch.empty_strided(
            leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device
        )
