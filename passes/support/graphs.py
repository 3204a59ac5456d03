"""Reading fx graphs: what a node is, what a group of nodes reads, when graphs are equal."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .sizes import DEPENDENT, spell_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from torch._subclasses import FakeTensorMode

aten = torch.ops.aten
CONCATENATIONS = {aten.cat.default, aten.concat.default}


def source_line(node: fx.Node) -> str:
    """``file.py:line`` of the call that made the node, or ``unknown source``."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if not frames:
        return "unknown source"
    path, line = frames[-1]
    return f"{path.replace(chr(92), '/').rsplit('/', 1)[-1]}:{line}"


def tensor_value(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that stands for the node's value, if it is a tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """What the fake tensors of a graph belong to."""
    values = (tensor_value(node) for node in graph.nodes)
    mode: FakeTensorMode = next(each.fake_mode for each in values if each is not None)  # type: ignore[attr-defined]
    return mode


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The shape of the node's tensor, in expressions where it depends on sizes."""
    value = tensor_value(node)
    assert value is not None, f"%{node.name} is no tensor"
    shape: tuple[Any, ...] = spell_sizes(tuple(node.meta.get("sizes", value.shape)))
    return shape


def parameter_path(node: fx.Node) -> str | None:
    """Path of the parameter, buffer or constant that the node stands for, or None."""
    if node.op == "get_attr" and not node.meta.get("is_graph"):
        return str(node.target)
    path: str | None = node.meta.get("parameter")
    return path


def is_static_input(node: fx.Node) -> bool:
    """Whether the node's tensor is the same object at every step: a parameter or a slot."""
    given = ("slot", "action", "weights")
    return any(key in node.meta for key in given) or parameter_path(node) is not None


def graph_inputs(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Nodes outside ``nodes`` that they read, in order of first use, static ones last."""
    inside = set(nodes)
    found = dict.fromkeys(
        source
        for node in nodes
        for source in node.all_input_nodes
        if source not in inside and not source.meta.get("is_graph")
    )
    return sorted(found, key=is_static_input)


def is_call_output(node: fx.Node) -> bool:
    """Whether the node picks one output of an outlined call."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and source.op == "call_module"


def is_computing(node: fx.Node) -> bool:
    """Whether a node computes: no input, no parameter, nothing that is outlined already."""
    return node.op == "call_function" and not is_call_output(node)


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers: seeded, and not with a dropout of zero."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    names = [argument.name for argument in node.target._schema.arguments]
    if "dropout_p" not in names:
        return True
    position = names.index("dropout_p")
    given = node.args[position] if position < len(node.args) else 0.0
    return bool(node.kwargs.get("dropout_p", given) != 0)


def has_effect(node: fx.Node) -> bool:
    """Whether a node must stay though nothing reads it.

    To fx that is every operator that may draw random numbers, also an attention whose dropout
    is zero.
    """
    if node.is_impure() and isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable or is_random(node)
    return node.is_impure()


def written_inputs(node: fx.Node) -> list[fx.Node]:
    """The arguments that a node writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    pairs = zip(schema.arguments, node.args, strict=False)
    return [
        arg
        for formal, arg in pairs
        if formal.alias_info and formal.alias_info.is_write and isinstance(arg, fx.Node)
    ]


def used_by_others(node: fx.Node, group: AbstractSet[fx.Node]) -> bool:
    """Whether a node has a user that is not in ``group``."""
    return any(user not in group for user in node.users)


def structure_of(gm: fx.GraphModule, describe: Callable[[object], str] | None = None) -> str:
    """A text that is equal for two graph modules exactly when they compute the same thing.

    Names do not count; operators, constants, and what is described of the inputs do: by
    default shapes, strides, dtypes and devices; numbers that depend on sizes, as expressions.
    """
    speller = StructureSpeller(gm, describe or describe_value)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            speller.add_input(node)
        else:
            speller.add(node)
    return "\n".join(speller.lines)


class StructureSpeller:
    """Writes what is equal for graphs, or for parts of one, that compute the same.

    Args:
        gm: What owns the graphs that nodes call.
        describe: What is equal for inputs that are alike.

    Attributes:
        lines: A line for each input and node.
    """

    def __init__(self, gm: fx.GraphModule, describe: Callable[[object], str]) -> None:
        self.lines: list[str] = []
        self._gm, self._describe = gm, describe
        self._names: dict[fx.Node, str] = {}

    def add_input(self, node: fx.Node) -> None:
        """Write a node that is an input, whatever it is in its graph."""
        described = self._describe(node.meta.get("val"))
        if "sizes" in node.meta:
            described = f"{described} {spell_sizes(node.meta['sizes'])}"
        self._note(node, f"placeholder {described} () {{}}")

    def add(self, node: fx.Node) -> None:
        """Write a node, and before it the graphs of its own that it is the first to read."""
        target: object = node.target
        for source in node.all_input_nodes:
            if source not in self._names:
                self.add(source)
        if node.op in ("get_attr", "call_module"):
            inner = self._gm.get_submodule(str(target))
            assert isinstance(inner, fx.GraphModule), f"{target} is not outlined"
            target = f"({structure_of(inner)})"
        args = fx.node.map_aggregate(node.args, self._spell)
        kwargs = fx.node.map_aggregate(node.kwargs, self._spell) if node.kwargs else {}
        self._note(node, f"{node.op} {target} {args} {kwargs}")

    def add_output(self, nodes: Iterable[fx.Node]) -> None:
        """Write what is returned."""
        self.lines.append(f"output output ({tuple(map(self._spell, nodes))},) {{}}")

    def _note(self, node: fx.Node, line: str) -> None:
        self._names[node] = f"%{len(self._names)}"
        self.lines.append(line)

    def _spell(self, each: Any) -> Any:
        if isinstance(each, fx.Node):
            return self._names[each]
        return each.expr if isinstance(each, DEPENDENT) else each


def describe_value(value: object) -> str:
    """Shape, strides, dtype and device of a tensor; the type of anything else."""
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {list(value.stride())} {value.dtype} {value.device}"
    return type(value).__name__


def describe_layout(value: object) -> str:
    """What `describe_value` gives, without strides of single elements, which may be any."""
    if not isinstance(value, torch.Tensor):
        return describe_value(value)
    pairs = zip(value.shape, value.stride(), strict=True)
    strides = [0 if size == 1 else stride for size, stride in pairs]
    return f"{list(value.shape)} {strides} {value.dtype} {value.device}"


def graph_outputs(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that a graph returns as its flat outputs."""
    outputs: Any = graph.output_node().args[0]
    return list(outputs)


def descendants(start: Iterable[fx.Node], inside: set[fx.Node]) -> set[fx.Node]:
    """``start`` and all that descends from it within a set."""
    found, front = set[fx.Node](), list(start)
    while front:
        node = front.pop()
        if node in inside and node not in found:
            found.add(node)
            front.extend(node.users)
    return found


def ancestors(start: Iterable[fx.Node], inside: set[fx.Node] | None = None) -> set[fx.Node]:
    """``start`` and all that it descends from, within a set if one is given."""
    found, front = set[fx.Node](), list(start)
    while front:
        node = front.pop()
        if (inside is None or node in inside) and node not in found:
            found.add(node)
            front.extend(node.all_input_nodes)
    return found


def is_pure(node: fx.Node) -> bool:
    """Whether the node's value depends on nothing but its arguments."""
    if node.op == "get_attr":
        return not node.meta.get("is_graph")
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not is_random(node) and not node.target._schema.is_mutable
