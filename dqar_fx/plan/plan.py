"""A plan: an outlined graph as a list of region calls.

An outlined graph consists of calls only: of conditioning stages, which have plans of their
own, and of regions. The plan numbers the tensors that flow between them
and says of each call what it reads, what it writes and which sites it holds. Binding a plan
to a row of actions picks the variant of each region and drops what the row leaves dead, also
across regions.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import fx

from dqar_fx.capture.offloaded import OffloadedTensor, WithWeights
from dqar_fx.passes.support.graphs import (
    graph_outputs,
    is_static_input,
    parameter_path,
    tensor_value,
)
from dqar_fx.schedule.action import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .slots import SlotKey

    Static = str | SlotKey | int | None
    PackWeights = Callable[[Sequence[Any]], Sequence[Any]]
    Specialised = Callable[[str, tuple[Action, ...], tuple[bool, ...]], "Variant"]
    Variants = Callable[["Plan"], Specialised]
    CallObserver = Callable[["Variant"], Callable[..., Sequence[Any]]]


@dataclass(frozen=True)
class PlannedCall:
    """One call of a region.

    Attributes:
        region: Name of the region's graph.
        inputs: Numbers of the flowing tensors that it reads, its first arguments.
        static: Its other arguments: a parameter's path, a slot's key, the column of a
            forecast's weights, or None for an action.
        outputs: Numbers of the tensors that it writes; None where nothing reads one.
        columns: Columns of its sites in the branch table, in graph order.
    """

    region: str
    inputs: tuple[int, ...]
    static: tuple[Static, ...]
    outputs: tuple[int | None, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A part of the conditioning that depends on one set of the denoiser's inputs.

    Attributes:
        gm: Graph of the stage, before it was cut into regions.
        plan: The same graph as calls of regions.
        inputs: Numbers, in the step's plan, of what it reads: the first inputs of ``gm``.
        static: The other inputs of ``gm``: parameters' paths.
        outputs: Numbers, in the step's plan, of what it gives; None where nothing reads it.
        leaves: Positions of the denoiser's inputs that it depends on.
    """

    gm: fx.GraphModule
    plan: Plan
    inputs: tuple[int, ...]
    static: tuple[Static, ...]
    outputs: tuple[int | None, ...]
    leaves: frozenset[int]

    def count_bytes(self, live: Sequence[bool]) -> int:
        """Count the bytes, for one step, of those of its outputs that are live."""
        values = map(tensor_value, compress(graph_outputs(self.gm.graph), live))
        return sum(value.numel() * value.itemsize for value in values if value is not None)


@dataclass(frozen=True)
class Plan:
    """An outlined graph as calls in order.

    Attributes:
        regions: Graph of each region by name.
        stages: The conditioning's stages, in order; they run before the calls.
        calls: The calls, in order.
        inputs: Number of each flowing input of the graph.
        outputs: Number of each output of the graph.
        size: How many numbers there are.
    """

    regions: dict[str, fx.GraphModule]
    stages: tuple[Stage, ...]
    calls: tuple[PlannedCall, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    size: int

    def place_inputs(self, leaves: Sequence[Any]) -> list[Any]:
        """Make room for all numbered tensors, with the graph's flat inputs in their places."""
        values: list[Any] = [None] * self.size
        for number, leaf in zip(self.inputs, leaves, strict=True):
            values[number] = leaf
        return values


def make_plan(gm: fx.GraphModule) -> Plan:
    """Read the plan of a step off an outlined graph."""
    numbers = number_tensors(gm.graph)
    inputs = [n for n in gm.graph.find_nodes(op="placeholder") if n in numbers]
    nodes = gm.graph.find_nodes(op="call_module", sort=True)
    calls = [plan_call(node, numbers) for node in nodes if "stage" not in node.meta]
    regions: dict[str, Any] = {call.region: gm.get_submodule(call.region) for call in calls}
    return Plan(
        regions=regions,
        stages=plan_stages(gm, [n for n in nodes if "stage" in n.meta], numbers, inputs),
        calls=tuple(calls),
        inputs=tuple(numbers[n] for n in inputs),
        outputs=tuple(numbers[n] for n in graph_outputs(gm.graph)),
        size=len(numbers),
    )


def number_tensors(graph: fx.Graph) -> dict[fx.Node, int]:
    """Give a number to each flowing input and to each output of a call."""
    numbers: dict[fx.Node, int] = {}
    for node in graph.nodes:
        flows = node.op == "placeholder" and not is_static_input(node)
        if flows or node.target is operator.getitem:
            numbers[node] = len(numbers)
    return numbers


def plan_call(node: fx.Node, numbers: dict[fx.Node, int]) -> PlannedCall:
    """Read off the call that a node stands for."""
    static = [a for a in node.all_input_nodes if is_static_input(a)]
    return PlannedCall(
        region=str(node.target),
        inputs=flowing_inputs(node, numbers),
        static=tuple(static_argument(a) for a in static),
        outputs=call_outputs(node, numbers),
        columns=tuple(a.meta["action"] for a in static if "action" in a.meta),
    )


def plan_stages(
    gm: fx.GraphModule,
    nodes: Sequence[fx.Node],
    numbers: dict[fx.Node, int],
    inputs: Sequence[fx.Node],
) -> tuple[Stage, ...]:
    """Read off the conditioning's stages, each with the inputs that it depends on."""
    depends = {numbers[node]: frozenset({leaf}) for leaf, node in enumerate(inputs)}
    stages = []
    for node in nodes:
        inner = gm.get_submodule(str(node.target))
        assert isinstance(inner, fx.GraphModule)
        reads, gives = flowing_inputs(node, numbers), call_outputs(node, numbers)
        leaves = frozenset[int]().union(*(depends[number] for number in reads))
        depends.update((number, leaves) for number in gives if number is not None)
        static = tuple(static_argument(a) for a in node.all_input_nodes if is_static_input(a))
        stages.append(
            Stage(node.meta["graph"], make_plan(inner), reads, static, gives, leaves)
        )
    return tuple(stages)


def flowing_inputs(call: fx.Node, numbers: dict[fx.Node, int]) -> tuple[int, ...]:
    """Numbers of what a call reads, static inputs left out."""
    return tuple(numbers[a] for a in call.all_input_nodes if not is_static_input(a))


def call_outputs(call: fx.Node, numbers: dict[fx.Node, int]) -> tuple[int | None, ...]:
    """List the number of each output of a call; None where nothing reads it."""
    items = {item.args[1]: numbers[item] for item in call.users}
    return tuple(items.get(position) for position in range(len(call.meta["val"])))


def static_argument(node: fx.Node) -> Static:
    """Give what stands for a static input until tensors are bound."""
    given: SlotKey | int | None = node.meta.get("slot", node.meta.get("weights"))
    return parameter_path(node) or given


class BoundCall(NamedTuple):
    """A call with everything that does not flow filled in: the unit of dispatch."""

    function: Callable[..., Sequence[Any]]
    inputs: tuple[int, ...]
    static: tuple[Any, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]
    """Numbers that nothing reads after this call."""
    number: int
    """Its place among the calls of the plan."""


@dataclass(frozen=True)
class Variant:
    """A region specialised for given actions and live outputs.

    Attributes:
        gm: Its graph.
        function: What runs it: the graph as it is lowered.
        kept: Positions of the region's inputs that it still takes.
        structure: Text that equal lowered variants share.
        packed: Positions of those inputs that it takes as packed weights.
    """

    gm: fx.GraphModule
    function: Callable[..., Sequence[Any]]
    kept: tuple[int, ...]
    structure: str
    packed: frozenset[int] = frozenset()


class LiveCall(NamedTuple):
    """A call that a row runs, before its tensors are bound."""

    number: int
    """Its place among the calls of the plan."""
    variant: Variant
    inputs: tuple[int, ...]
    """Numbers of the flowing tensors that the variant reads."""
    static: dict[int, Static]
    """What the variant takes besides, by position among the region's inputs."""
    outputs: tuple[int, ...]
    """Numbers of the tensors that something reads."""
    dead: tuple[int, ...]
    """Numbers that nothing reads after this call."""


def select_calls(
    plan: Plan, actions: Sequence[int], specialised: Specialised
) -> list[LiveCall]:
    """Select the calls that a row runs, in order, and the variants that they run.

    A call is run if something after it reads what it gives, or if one of its sites stores.
    """
    needed = set(plan.outputs)
    selected: list[LiveCall] = []
    for place, call in reversed(list(enumerate(plan.calls))):
        mine = tuple(Action(int(actions[c])) for c in call.columns)
        live = tuple(number in needed for number in call.outputs)
        if not any(live) and Action.STORE not in mine:
            continue
        variant = specialised(call.region, mine, live)
        flowing = len(call.inputs)
        inputs = tuple(call.inputs[k] for k in variant.kept if k < flowing)
        static = {k: call.static[k - flowing] for k in variant.kept if k >= flowing}
        outputs = tuple(n for n in call.outputs if n in needed and n is not None)
        dead = tuple(number for number in dict.fromkeys(inputs) if number not in needed)
        needed.update(inputs)
        selected.append(LiveCall(place, variant, inputs, static, outputs, dead))
    return selected[::-1]


def bind(
    calls: Sequence[LiveCall],
    fill: Callable[[Static], Any],
    pack: PackWeights | None = None,
    observe: CallObserver | None = None,
) -> list[BoundCall]:
    """Fill in what does not flow between the calls of a row.

    Args:
        calls: The calls, as `select_calls` gives them.
        fill: Gives the tensor for a static argument.
        pack: Packs those of a call that are weights; None where no variant has any.
        observe: Gives what is called in the place of a variant's function, such as a clock
            around it; None to call the function itself.

    Returns:
        The calls, each with all that it takes beside the tensors that flow.
    """
    bound: list[BoundCall] = []
    for call in calls:
        filled = {k: fill(static) for k, static in call.static.items()}
        if pack is not None:
            weights = sorted(call.variant.packed & filled.keys())
            filled |= zip(weights, pack([filled[k] for k in weights]), strict=True)
        function = call.variant.function if observe is None else observe(call.variant)
        static = tuple(filled.values())
        if any(isinstance(each, OffloadedTensor) for each in static):
            function, static = WithWeights(function, static), ()
        bound.append(
            BoundCall(function, call.inputs, static, call.outputs, call.dead, call.number)
        )
    return bound


def execute(calls: Sequence[BoundCall], values: list[Any]) -> None:
    """Run bound calls over the numbered tensors ``values``, in place."""
    for function, inputs, static, outputs, dead, _ in calls:
        results = function(*[values[i] for i in inputs], *static)
        for number, result in zip(outputs, results, strict=True):
            values[number] = result
        for number in dead:
            values[number] = None
