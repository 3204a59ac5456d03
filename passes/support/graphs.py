"""Reading and cutting fx graphs: the few helpers that several passes need.

`outline` is the one way in which this package moves nodes into a graph of their own. The
new graph owns no parameters: what it reads becomes its inputs, tensors that flow first and
parameters last, so that graphs of equal structure can share one compiled function.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.proxy_tensor import make_fx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet


def module_stack(node: fx.Node) -> list[tuple[str, str]]:
    """``(call key, module path)`` from the root down to the module that made the node.

    The call key tells two calls of one module apart; the path does not.
    """
    stack: dict[str, tuple[str, str]] = node.meta.get("nn_module_stack") or {}
    return [(key, path) for key, (path, _) in stack.items()]


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node; empty for the root."""
    stack = module_stack(node)
    return stack[-1][1] if stack else ""


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


def copy_meta(source: fx.Node) -> dict[str, Any]:
    """A record of its own for a copied node: fx copies ``meta`` shallowly."""
    return dict(source.meta)


def make_module(root: nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """A module of a graph, whose code is not generated before it is needed.

    Most graphs are rewritten and cut up, never run: to generate code for each after each pass
    takes longer than the passes.
    """
    return _LazyGraphModule(root, graph)


def generate_code(gm: fx.GraphModule) -> None:
    """Generate a module's code, if it is not up to date, so that ``forward`` may be taken."""
    _LazyGraphModule.force_recompile(gm)


def extract(
    gm: fx.GraphModule,
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    given: Sequence[fx.Node] = (),
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Copy ``nodes`` into a parameter-free graph module.

    Args:
        gm: The graph.
        nodes: What is copied.
        outputs: Which of them it returns.
        given: What it takes as its first inputs, needed or not.

    Returns:
        The module, which maps its inputs to a tuple of ``outputs``, and the nodes of ``gm``
        to call it with after ``given``.
    """
    inputs = [n for n in graph_inputs(nodes) if n not in given]
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    root: dict[str, Any] = {}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # only graphs are met here first: they are owned, not passed
            root[str(node.target)] = gm.get_submodule(str(node.target))
            copies[node] = graph.node_copy(node)
            copies[node].meta = copy_meta(node)
        return copies[node]

    for node in (*given, *inputs):
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = copy_meta(node)
        if parameter_path(node) is not None:
            copies[node].meta["parameter"] = parameter_path(node)
    for node in nodes:
        for source in node.all_input_nodes:
            copy_of(source)
        if node.op == "call_module":
            root[str(node.target)] = gm.get_submodule(str(node.target))
        copies[node] = graph.node_copy(node, copy_of)
        copies[node].meta = copy_meta(node)
    graph.output(tuple(copies[node] for node in outputs))
    return make_module(root, graph), inputs


def replace_by_call(
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    call: Callable[[], fx.Node],
    *,
    before: fx.Node,
    inside: AbstractSet[fx.Node] = frozenset(),
) -> fx.Node:
    """Put ``call`` (it returns a tuple of ``outputs``) where ``nodes`` were; erase these.

    Where outputs are not erased, nodes ``inside`` and the call itself go on reading them.
    """
    graph = before.graph
    with graph.inserting_before(before):
        caller = call()
        items = [
            graph.call_function(operator.getitem, (caller, i)) for i in range(len(outputs))
        ]
    caller.meta["val"] = tuple(node.meta.get("val") for node in outputs)
    for node, item in zip(outputs, items, strict=True):
        item.meta = copy_meta(node)
        node.replace_all_uses_with(
            item, lambda user: user is not caller and user not in inside
        )
    for node in reversed(nodes):
        graph.erase_node(node)
    return caller


def outline(
    gm: fx.GraphModule,
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    name: str,
    *,
    before: fx.Node,
) -> fx.Node:
    """Replace ``nodes`` by a call of a new submodule ``name``, inserted before a node.

    ``before`` must come after every input and before every user of ``outputs``.
    """
    body, inputs = extract(gm, nodes, outputs)
    gm.add_submodule(name, body)
    graph = gm.graph
    return replace_by_call(
        nodes, outputs, lambda: graph.call_module(name, tuple(inputs)), before=before
    )


def insert_call(like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call of an operator in the graph of ``like``, whose record it takes over."""
    node = like.graph.call_function(target, args)
    node.meta = copy_meta(like)
    node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
    return node


def emit(
    graph: fx.Graph,
    function: Callable[..., tuple[torch.Tensor, ...]],
    inputs: Sequence[fx.Node],
) -> list[fx.Node]:
    """Trace a tensor function on the inputs' fake values and put its nodes here."""
    traced = make_fx(function)(*(node.meta["val"] for node in inputs))
    return inline(graph, traced, inputs)


def inline(graph: fx.Graph, inner: fx.GraphModule, inputs: Sequence[fx.Node]) -> list[fx.Node]:
    """Copy the nodes of ``inner`` here, reading ``inputs``; its outputs."""
    copies = dict(zip(inner.graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in inner.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].meta = copy_meta(node)
    return [copies[node] for node in graph_outputs(inner.graph)]


def structure_of(gm: fx.GraphModule, describe: Callable[[object], str] | None = None) -> str:
    """A text that is equal for two graph modules exactly when they compute the same thing.

    Names do not count; operators, constants, and what is described of the inputs do: by
    default shapes, strides, dtypes and devices.
    """
    describe = describe or describe_value
    index: dict[fx.Node, str] = {}
    lines = []
    for node in gm.graph.nodes:
        index[node] = f"%{len(index)}"
        target: Any = node.target
        if node.op == "placeholder":
            target = describe(node.meta.get("val"))
        elif node.op in ("get_attr", "call_module"):
            inner = gm.get_submodule(str(node.target))
            assert isinstance(inner, fx.GraphModule), f"{node.target} is not outlined"
            target = f"({structure_of(inner)})"
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: index[n])
        lines.append(f"{node.op} {target} {args} {kwargs}")
    return "\n".join(lines)


def describe_value(value: object) -> str:
    """Shape, strides, dtype and device of a tensor; the type of anything else."""
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {list(value.stride())} {value.dtype} {value.device}"
    return type(value).__name__


def describe_layout(value: object) -> str:
    """The same, where the stride of a single element does not count: it may be anything."""
    if not isinstance(value, torch.Tensor):
        return describe_value(value)
    pairs = zip(value.shape, value.stride(), strict=True)
    strides = [0 if size == 1 else stride for size, stride in pairs]
    return f"{list(value.shape)} {strides} {value.dtype} {value.device}"


def graph_outputs(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that a graph returns as its flat outputs."""
    outputs: Any = graph.output_node().args[0]
    return list(outputs)


def drop_unused_inputs(gm: fx.GraphModule) -> list[int]:
    """Erase placeholders without users; return the positions of those that stay."""
    kept = []
    for position, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        if node.users:
            kept.append(position)
        else:
            gm.graph.erase_node(node)
    return kept
