"""From a graph to the kernels that it runs: products one by one, the rest fused or not.

What a compiler does to the rest is approximated: operators between two products that read
each other are one kernel, which reads its inputs and writes its outputs once. Where nothing
is compiled, each operator is a kernel. Views are none.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from dqar_fx.passes.find_attention import find_attention
from dqar_fx.passes.find_feed_forward import find_feed_forward
from dqar_fx.passes.pipeline import BEFORE_LOOKING_AT_SITES
from dqar_fx.passes.support.graphs import tensor_value, written_inputs
from dqar_fx.passes.support.module_paths import module_stack
from dqar_fx.passes.support.runner import fork, run_passes

from .operation import Operand, Operation, count_macs, map_leaves

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

aten = torch.ops.aten
COST_KINDS = (
    "attention",
    "feed_forward",
    "products",
    "pointwise",
    "slots",
    "conditioning",
    "overhead",
)
"""Where the time goes: ``products`` are those outside of attention and feed-forwards,
``pointwise`` is all that is no product, ``slots`` are reads and writes of what is kept."""
MAY_COPY = (aten.reshape, aten.flatten, aten.contiguous, aten.to, aten.reshape_as)
"""Operators that give views where strides and dtype allow it."""
COSTLY = (
    *(aten.gelu, aten.silu, aten.tanh, aten.sigmoid, aten.exp, aten.erf, aten.log),
    *(aten.sin, aten.cos, aten.softplus, aten.mish, aten.pow, aten.elu),
    *(aten.softmax, aten._softmax, aten.layer_norm, aten.native_layer_norm),
    *(aten.rms_norm, aten._fused_rms_norm, aten.group_norm, aten.native_group_norm),
)
"""Operators that take more than reading and writing their tensors does, also when fused."""


@dataclass(frozen=True)
class Kernel:
    """One piece of work that a device is given.

    Attributes:
        kind: One of `COST_KINDS`.
        macs: Multiply-accumulates.
        nbytes: Bytes that it reads and writes.
        slot_bytes: Those of these bytes that belong to slots.
        dtype: Dtype of its result.
        timed: Operators to time in its place; of fused ones, those that are costly.
        is_fused: Whether several operators may be in it.
    """

    kind: str
    macs: int
    nbytes: int
    slot_bytes: int
    dtype: torch.dtype
    timed: tuple[Operation, ...]
    is_fused: bool

    def scaled(self, factor: int) -> Kernel:
        """Give it ``factor`` times as many rows."""
        fixed = sum(o.nbytes for each in self.timed for o in each.operands if o.is_parameter)
        flowing = max(self.nbytes - fixed, 0)
        return replace(
            self,
            macs=self.macs * factor,
            nbytes=self.nbytes + flowing * (factor - 1),
            timed=tuple(each.scaled(factor) for each in self.timed),
        )


@dataclass(frozen=True)
class Modules:
    """The paths of the modules that are attentions, and of those that are feed-forwards."""

    attention: frozenset[str]
    feed_forward: frozenset[str]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Modules:
        """Find those of a captured model; its conditioning is a kind of its own."""
        graph = fork(gm)
        run_passes(graph, BEFORE_LOOKING_AT_SITES)
        found = (find(graph)[0] for find in (find_attention, find_feed_forward))
        paths = (frozenset(match.site.path for match in matches) for matches in found)
        return cls(*paths)

    def kind(self, node: fx.Node, *, is_product: bool) -> str:
        """Give the kind of what a node computes."""
        stack = {path for _, path in module_stack(node)}
        if stack & self.attention:
            return "attention"
        if stack & self.feed_forward:
            return "feed_forward"
        return "products" if is_product else "pointwise"


def find_kernels(graph: fx.Graph, modules: Modules, *, fused: bool) -> Counter[Kernel]:
    """Count the kernels of a graph; fused, the operators between two products are one."""
    nodes = [node for node in graph.nodes if computes(node)]
    operations = {node: Operation.of(node, source_of) for node in nodes}
    macs = {node: count_macs(operation) for node, operation in operations.items()}
    products = {node for node in nodes if macs[node]}
    alone = [[node] for node in nodes if not fused or node in products]
    groups = find_groups(nodes, products) if fused else []

    def kernel(group: Sequence[fx.Node]) -> Kernel:
        inside = frozenset(group)
        is_fused = fused and group[0] not in products
        timed = [
            operations[n]
            for n in group
            if not is_fused or getattr(n.target, "overloadpacket", None) in COSTLY
        ]
        nbytes, slot_bytes = count_kernel_bytes(inside)
        kinds = {modules.kind(node, is_product=group[0] in products) for node in group}
        return Kernel(
            kind=kinds.pop() if len(kinds) == 1 else "pointwise",
            macs=sum(macs[n] for n in group),
            nbytes=nbytes,
            slot_bytes=slot_bytes,
            dtype=dtype_of(group[-1]),
            timed=tuple(each.as_compiled() if fused else each for each in timed),
            is_fused=is_fused,
        )

    return Counter(kernel(group) for group in (*alone, *groups))


def find_groups(
    nodes: Sequence[fx.Node], products: AbstractSet[fx.Node]
) -> list[list[fx.Node]]:
    """Group what is no product: nodes that read each other with no product on the way."""
    level: dict[fx.Node, int] = {}
    group: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        sources = [s for s in map(source_of, node.all_input_nodes) if s in level]
        level[node] = max((level[s] + (s in products) for s in sources), default=0)
        if node in products:
            continue
        group[node] = [node]
        for source in sources:
            if source in group and level[source] == level[node]:
                join(group, source, node)
    return list({id(members): members for members in group.values()}.values())


def join(group: dict[fx.Node, list[fx.Node]], a: fx.Node, b: fx.Node) -> None:
    """Make one group of the groups of two nodes."""
    first, second = group[a], group[b]
    if first is second:
        return
    first += second
    for node in second:
        group[node] = first


def count_kernel_bytes(group: AbstractSet[fx.Node]) -> tuple[int, int]:
    """Count the bytes that a kernel of these nodes reads and writes, and those of slots."""
    reads: dict[fx.Node, dict[fx.Node, int]] = {}
    written = dict[fx.Node, int]()
    for node in group:
        targets = written_inputs(node)
        for arg in node.all_input_nodes:
            source = source_of(arg)
            if source in group or arg in targets:
                continue
            reads.setdefault(source, {})[arg] = bytes_of(arg)
        written.update((source_of(t), bytes_of(t)) for t in targets)
        if not targets and is_read_outside(node, group):
            written[node] = bytes_of(node)
    pairs = [(s, min(sum(views.values()), bytes_of(s))) for s, views in reads.items()]
    pairs += written.items()
    slots = sum(size for source, size in pairs if "slot" in source.meta)
    return sum(size for _, size in pairs), slots


def is_read_outside(node: fx.Node, group: AbstractSet[fx.Node]) -> bool:
    """Whether a value leaves the group, itself or as a view."""
    return any(
        is_read_outside(user, group) if is_view(user) else user not in group
        for user in node.users
    )


def computes(node: fx.Node) -> bool:
    """Whether a node is a call that is no view."""
    return node.op == "call_function" and not is_view(node)


def is_view(node: fx.Node) -> bool:
    """Whether a node shows (a part of) what another computed, without work."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    shows = bool(schema.returns) and all(r.alias_info is not None for r in schema.returns)
    return shows and not schema.is_mutable and not is_copy(node)


def is_copy(node: fx.Node) -> bool:
    """Whether what may be a view must copy."""
    if getattr(node.target, "overloadpacket", None) not in MAY_COPY:
        return False
    before, after = tensor_value(node.all_input_nodes[0]), tensor_value(node)
    if before is None or after is None:
        return False
    if before.dtype != after.dtype:
        return True
    if node.target is aten.contiguous.default:
        return not before.is_contiguous()
    try:
        Operand.of(before).allocate(torch.device("meta")).view(after.shape)
    except RuntimeError:
        return True
    return False


def source_of(node: fx.Node) -> fx.Node:
    """Find the node whose memory a node shows; a node that is no view shows its own."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def bytes_of(node: fx.Node) -> int:
    """Count the bytes of a node's value, or of all its values."""
    return sum(Operand.of(value).nbytes for value in tensors_of(node))


def dtype_of(node: fx.Node) -> torch.dtype:
    """Give the dtype of a node's (first) value; float32 if it has no tensor."""
    return next((value.dtype for value in tensors_of(node)), torch.float32)


def tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """List the tensors of a node's value."""
    found: list[torch.Tensor] = []
    map_leaves(node.meta.get("val"), torch.Tensor, found.append)
    return found
