"""A graph as one list of entries, whatever it is nested in.

Stages, regions and the bodies of guards are graphs inside of a graph. Here their nodes stand
in one list, each with what it lies within, and read each other directly: a stage's input is
what the caller gave, a call's output is what the node inside computed. So two graphs compare
by what they compute, and however they are cut:

    %conditioning_1 = call_module(%timestep, ...)     conditioning_1 = stage
    %getitem_3 = getitem(%conditioning_1, 3)      ->    silu = aten.silu.default(timestep)
    %mul = mul(%x, %getitem_3)                        mul = aten.mul.Tensor(x, silu)

A guard is taken to compute, as it does where its action is COMPUTE or STORE. Parameters, slots
and the weights of forecasts are no entries but operands; reading a slot is an entry.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

from dqar_fx.costs.operation import map_leaves
from dqar_fx.passes import compute_or_reuse
from dqar_fx.passes.support.graphs import (
    graph_outputs,
    parameter_path,
    structure_of,
    tensor_value,
    written_inputs,
)
from dqar_fx.passes.support.module_paths import module_stack, rename_path
from dqar_fx.passes.support.operators import inner_graph, name_of, submodule

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(eq=False)
class GraphEntry:
    """A node, wherever it lies.

    Attributes:
        node: The node; where a slot is read, the node of its first reader.
        kind: ``operator``, ``guard``, ``stage``, ``region``, ``read`` or ``write`` (of a
            slot), ``input`` or ``output``.
        operator: The operator's name, such as ``aten.linear.default``; for others their kind.
        path: Path of the module that made it; of what no module made, the path of the site or
            value that it belongs to.
        place: The path again, but with two calls of one module told apart.
        within: The stages, guards and regions around it, outermost first.
        args: Its operands: `EntryValue`, `StaticOperand` and constants, nested as in the node.
        site: Path of the site whose guard or slot this is; empty for others.
        type: Dtype and shape of its value, such as ``float32[2, 36, 60]``.
    """

    node: fx.Node
    kind: str
    operator: str
    path: str
    place: str
    within: tuple[str, ...]
    args: tuple[Any, ...] = ()
    site: str = ""
    type: str = ""


@dataclass(frozen=True)
class EntryValue:
    """The value of an entry, or one of its several values.

    Attributes:
        entry: The entry.
        index: Which of its values, and which part of that; empty for the one value.
    """

    entry: GraphEntry
    index: tuple[Any, ...] = ()


@dataclass(frozen=True)
class StaticOperand:
    """An operand that is there before the graph runs.

    Attributes:
        kind: ``parameter``, ``slot``, ``action`` or ``weights``.
        text: A name for it, the same in all graphs of a model.
        site: Path of the site of a slot; empty for others.
        type: Dtype and shape, such as ``float32[2, 36, 60]``.
        nbytes: Bytes of a tensor; 0 for others.
    """

    kind: str
    text: str
    site: str = ""
    type: str = ""
    nbytes: int = 0


@dataclass(frozen=True)
class Nesting:
    """What a graph is nested in.

    Attributes:
        within: The stages, guards and regions around it, outermost first.
        first: Path of the block that a region which blocks share was cut out of; empty where
            no region is around it.
        block: Path of the block that the region is called for.
    """

    within: tuple[str, ...] = ()
    first: str = ""
    block: str = ""

    def translate(self, path: str) -> str:
        """Rename a path in the first block as it is in the block that is called for."""
        return rename_path(path, self.first, self.block) if self.first else path


@dataclass
class FlatGraph:
    """A graph, flattened.

    Attributes:
        entries: In execution order; what lies within an entry follows it.
        parameters: Bytes of each parameter that an entry reads, by path.
    """

    entries: list[GraphEntry] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)


def flatten_graph(gm: fx.GraphModule) -> FlatGraph:
    """List the entries of a graph, those of the graphs inside of it included."""
    return GraphFlattener(FlatGraph()).run(gm)


class GraphFlattener:
    """One walk through a graph and what it calls, which fills ``flat``."""

    def __init__(self, flat: FlatGraph) -> None:
        self.flat = flat
        self._reads: dict[StaticOperand, EntryValue] = {}
        self._first: dict[fx.GraphModule, str] = {}

    def run(self, gm: fx.GraphModule) -> FlatGraph:
        """Flatten a whole graph."""
        node, outputs = gm.graph.output_node(), self._walk(gm, {}, Nesting())
        args = tuple(self._read(value, node, Nesting()) for value in outputs)
        self.flat.entries.append(GraphEntry(node, "output", "return", "", "", (), args))
        return self.flat

    def _walk(
        self, gm: fx.GraphModule, known: dict[fx.Node, Any], where: Nesting
    ) -> list[Any]:
        """Walk through a graph, add to the values that are known; those of its outputs."""
        for node in gm.graph.nodes:
            if node.op != "output" and node not in known and not node.meta.get("is_graph"):
                known[node] = self._value(gm, node, known, where)
        returned = gm.graph.output_node().args[0]
        outputs = graph_outputs(gm.graph) if isinstance(returned, list | tuple) else [returned]
        return [known[node] if isinstance(node, fx.Node) else node for node in outputs]

    def _value(
        self, gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any], where: Nesting
    ) -> Any:
        given = static_operand_of(node)
        if given is not None:
            return given
        if node.op == "placeholder":
            return EntryValue(self._add(node, "input", "input", where))
        if node.target is operator.getitem:
            return pick(fx.map_arg(node.args, lambda each: known[each]))
        if node.target is compute_or_reuse:
            return self._guard(gm, node, known, where)
        inner = inner_graph(gm, node)
        if inner is not None:
            return self._call(inner, node, known, where)
        return EntryValue(self._operator(node, known, where))

    def _add(self, node: fx.Node, kind: str, name: str, where: Nesting) -> GraphEntry:
        stack = module_stack(node)
        place, path = stack[-1] if stack else ("", "")
        if where.first:
            path, place = where.translate(path), place.replace(where.first, where.block)
        entry = GraphEntry(node, kind, name, path, place, where.within)
        entry.type = type_of(node.meta.get("val"))
        self.flat.entries.append(entry)
        return entry

    def _operator(
        self, node: fx.Node, known: dict[fx.Node, Any], where: Nesting
    ) -> GraphEntry:
        """Add a call of an operator and, before it, the reads of slots that it does."""
        written = [known[target] for target in written_inputs(node)]
        operands = fx.map_arg((node.args, dict(node.kwargs)), lambda each: known[each])
        args, kwargs = map_leaves(
            operands,
            (EntryValue, StaticOperand),
            lambda each: each if each in written else self._read(each, node, where),
        )
        slots = [each.site for each in written if isinstance(each, StaticOperand)]
        entry = self._add(node, "write" if slots else "operator", name_of(node), where)
        entry.args = (args, kwargs) if kwargs else (args,)
        entry.site = slots[0] if slots else ""
        settle(entry)
        return entry

    def _read(self, value: Any, reader: fx.Node, where: Nesting) -> Any:
        """Give an operand's value: for a slot, an entry that reads it. Note parameters."""
        if not isinstance(value, StaticOperand):
            return value
        if value.kind == "parameter":
            self.flat.parameters[value.text] = value.nbytes
        if value.kind != "slot":
            return value
        if value not in self._reads:
            entry = GraphEntry(reader, "read", "read", value.site, value.site, where.within)
            entry.args, entry.site, entry.type = (value,), value.site, value.type
            self.flat.entries.append(entry)
            self._reads[value] = EntryValue(entry)
        return self._reads[value]

    def _call(
        self, inner: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any], where: Nesting
    ) -> list[Any]:
        """Add a stage or a region, then what is inside; the values of its outputs."""
        kind = "stage" if "stage" in node.meta else "region"
        label = str(node.target if kind == "stage" else node.meta.get("block", ""))
        entry = self._add(node, kind, name_of(node), where)
        entry.path = entry.place = label if kind == "region" else ""
        entry.args, entry.type = (label,), ""
        given = [known[each] for each in cast("Sequence[fx.Node]", node.args)]
        first = self._first.setdefault(inner, label) if kind == "region" else ""
        return self._enter(inner, given, entry, Nesting(where.within, first, label))

    def _guard(
        self, gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any], where: Nesting
    ) -> list[Any]:
        """Add a guard, then what the site computes; the values of what the site gives."""
        _, _, slots, body, resume, cache_format, _, inputs, _ = cast("Any", node.args)
        site = where.translate(node.meta["site"].path)
        entry = self._add(node, "guard", "compute_or_reuse", where)
        entry.path = entry.place = entry.site = site
        kept = fx.map_arg(slots, lambda each: known[each])
        others = "" if resume is None else structure_of(submodule(gm, resume))
        entry.args, entry.type = (site, kept, cache_format, UnprintedText(others)), ""
        given = [known[each] for each in inputs]
        return self._enter(submodule(gm, body), given, entry, where)

    def _enter(
        self, inner: fx.GraphModule, given: Sequence[Any], entry: GraphEntry, where: Nesting
    ) -> list[Any]:
        """Add what is inside of a stage, region or guard; the values of its outputs."""
        inputs = inner.graph.find_nodes(op="placeholder")
        label = f"{entry.kind} {entry.args[0]}".strip()
        inside = replace(where, within=(*where.within, label))
        return self._walk(inner, dict(zip(inputs, given, strict=True)), inside)


@dataclass(frozen=True)
class UnprintedText:
    """A text that tells an entry from others and is not printed."""

    text: str


def settle(entry: GraphEntry) -> None:
    """Give what no module made the path of the site or value that it belongs to."""
    if entry.node.meta.get("nn_module_stack"):
        return
    origins = [(entry.site, entry.site)]
    origins += [(source.path, source.place) for source in list_sources(entry)]
    entry.path, entry.place = next((pair for pair in origins if pair[0]), ("", ""))


def list_sources(entry: GraphEntry) -> list[GraphEntry]:
    """List the entries that one reads."""
    return [each.entry for each in list_operands(entry) if isinstance(each, EntryValue)]


def list_operands(entry: GraphEntry) -> list[EntryValue | StaticOperand]:
    """List the values and the static operands that an entry reads."""
    found: list[EntryValue | StaticOperand] = []
    map_leaves(entry.args, (EntryValue, StaticOperand), found.append)
    return found


def static_operand_of(node: fx.Node) -> StaticOperand | None:
    """Give the operand that a node stands for, if it is there before the graph runs."""
    path, value = parameter_path(node), tensor_value(node)
    site = str(node.meta.get("site_path", ""))
    type_, nbytes = type_of(value), 0 if value is None else value.nbytes
    if path is not None:
        return StaticOperand("parameter", path, "", type_, nbytes)
    if "slot" in node.meta:
        return StaticOperand("slot", spell_slot(site, node.meta["slot"]), site, type_, nbytes)
    if "weights" in node.meta:
        return StaticOperand("weights", f"weights[{site}]", type=type_)
    return StaticOperand("action", "action") if "action" in node.meta else None


def spell_slot(site: str, key: tuple[int, int, int, int]) -> str:
    """Name a slot by its site, kept value, place in the history and part of the format.

    Zeros at the end are left out: ``slot[blocks.0.attn, 1]``.
    """
    _, *numbers = key
    while numbers and not numbers[-1]:
        numbers.pop()
    return f"slot[{', '.join([site, *map(str, numbers)])}]"


def pick(args: Any) -> Any:
    """Pick one of several values, as ``getitem`` does."""
    values, index = args
    if isinstance(values, EntryValue):
        return EntryValue(values.entry, (*values.index, index))
    return values[index]


def type_of(value: Any) -> str:
    """Describe a tensor as ``float32[2, 36, 60]``; several, one after the other."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return ", ".join(map(type_of, value))
    return "" if value is None else type(value).__name__
