"""One capture for all shapes: sizes of inputs as symbols, and what they must fulfil.

`torch.export` takes each dimension above 1 of each input, and each whole number above 1, for a
symbol. What a forward asks of sizes becomes a guard. In the graph, what depends on sizes
becomes a plain number that knows its expression (`dqar_fx.passes.support.sizes`), and every
fake tensor that of the call that was captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.export import Dim
from torch.export.dynamic_shapes import _combine_args
from torch.utils import _pytree as pytree
from torch.utils._sympy.solve import try_solve

from dqar_fx.passes.support.sizes import make_size

from .inputs import casts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from dqar_fx.passes.support.sizes import Sizes

aten = torch.ops.aten

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
STALE = ("tensor_meta", "eager_input_vals", "unbacked_bindings")
"""Records of a node that hold symbols beside its value."""


class Unfit(Exception):
    """A call that a symbolic capture is not good for: the reason."""


def name_dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The ``dynamic_shapes`` of `torch.export` for the arguments of a call."""

    def name(leaf: object) -> Any:
        if isinstance(leaf, torch.Tensor):
            return {dim: Dim.AUTO for dim, size in enumerate(leaf.shape) if size > 1}
        return Dim.AUTO if type(leaf) is int and leaf > 1 else None

    return pytree.tree_map(name, _combine_args(model, args, kwargs))


@dataclass(frozen=True)
class InputTensor:
    """A tensor among the inputs: sizes and strides as expressions."""

    shape: tuple[sympy.Expr, ...]
    stride: tuple[sympy.Expr, ...]
    dtype: torch.dtype
    device: torch.device

    def equations(self, given: object) -> Iterable[tuple[sympy.Expr, int]]:
        """What must be equal.

        Raises:
            Unfit: It is another kind of tensor.
        """
        if not isinstance(given, torch.Tensor):
            raise Unfit("an input is no tensor")
        found = given.dtype, given.device, given.dim()
        if found != (self.dtype, self.device, len(self.shape)):
            raise Unfit("an input has another dtype, device or number of dimensions")
        pairs = zip(self.shape, given.shape, strict=True)
        yield from pairs
        strides = zip(given.shape, self.stride, given.stride(), strict=True)
        yield from ((expr, stride) for size, expr, stride in strides if size > 1)


@dataclass(frozen=True)
class InputNumber:
    """A whole number among the inputs, as an expression."""

    expr: sympy.Expr

    def equations(self, given: object) -> Iterable[tuple[sympy.Expr, int]]:
        """What must be equal.

        Raises:
            Unfit: It is no whole number.
        """
        if type(given) is not int:
            raise Unfit("an input is no whole number")
        yield self.expr, given


@dataclass(frozen=True)
class InputConstant:
    """Anything else among the inputs, which must be the same."""

    kind: type
    text: str

    def equations(self, given: object) -> Iterable[tuple[sympy.Expr, int]]:
        """What must be equal.

        Raises:
            Unfit: It is something else.
        """
        if (type(given), repr(given)) != (self.kind, self.text):
            raise Unfit(f"an input is {given!r}, not {self.text}")
        return ()


@dataclass(frozen=True)
class SymbolicInputs:
    """What a capture for all shapes asks of the inputs of a call.

    Attributes:
        inputs: What each input must be.
        spec: How the flat inputs become arguments.
        casts: What autocast casts to.
        ranges: The smallest and the largest value of each symbol.
        guards: What must be true.
        captured: The value of each symbol in the call that was captured.
    """

    inputs: tuple[InputTensor | InputNumber | InputConstant, ...]
    spec: pytree.TreeSpec
    casts: tuple[torch.dtype, ...]
    ranges: Mapping[sympy.Symbol, tuple[Any, Any]]
    guards: tuple[sympy.Basic, ...]
    captured: Sizes

    def sizes_of(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> dict[sympy.Symbol, int]:
        """The symbols' values in a call.

        Raises:
            Unfit: The capture is not good for the call.
        """
        if spec != self.spec or casts_of(leaves) != self.casts:
            raise Unfit("other arguments are given, or autocast is another")
        sizes: dict[sympy.Symbol, int] = {}
        later = []
        for known, given in zip(self.inputs, leaves, strict=True):
            for expr, number in known.equations(given):
                if isinstance(expr, sympy.Symbol):
                    if sizes.setdefault(expr, number) != number:
                        raise Unfit(f"sizes {sizes[expr]} and {number} must be equal")
                elif expr.is_number:
                    if int(expr) != number:
                        raise Unfit(f"a size is {number}, captured for {expr} alone")
                else:
                    later.append((expr, number))
        for expr, number in later:
            solve(expr, number, sizes)
        self._refuse(sizes)
        return sizes

    def _refuse(self, sizes: dict[sympy.Symbol, int]) -> None:
        """Raise for sizes that the captured graph is not good for."""
        for symbol, (low, high) in self.ranges.items():
            if symbol not in sizes or not low <= sizes[symbol] <= high:
                raise Unfit(f"a size is {sizes.get(symbol)}, captured for {low} to {high}")
        for guard in self.guards:
            if guard.xreplace(sizes) != sympy.true:
                raise Unfit(f"the forward asks whether {guard}, which is another here")


def solve(expr: sympy.Expr, number: int, sizes: dict[sympy.Symbol, int]) -> None:
    """Let an expression be a number, by the one symbol in it that is not known.

    Raises:
        Unfit: It cannot be.
    """
    left = expr.xreplace(sizes)
    free = list(left.free_symbols)
    if len(free) == 1:
        solved = try_solve(sympy.Eq(left, number), free[0])
        if solved is not None and solved[1].is_Integer:
            sizes[free[0]] = int(solved[1])
            left = left.xreplace(sizes)
    if left != number:
        raise Unfit(f"a size is {number} where {expr} was captured")


def read_inputs(exported: ExportedProgram, leaves: Sequence[Any]) -> SymbolicInputs | None:
    """What a program asks of its inputs; None if it is good for these alone."""
    names = exported.graph_signature.user_inputs
    nodes = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    values = [nodes[name].meta["val"] if name in nodes else None for name in names]
    if len(values) != len(leaves):
        return None
    env = next((each for value in values for each in shape_envs(value)), None)
    if env is None:
        return None
    reader = Reader(env)
    inputs = tuple(map(reader.input, values, leaves))
    guards = dict.fromkeys(env.simplify(guard.expr) for guard in env.guards)
    symbols = set().union(*(found.free_symbols for found in reader.found.values()))
    if not symbols:
        return None
    limits = {symbol: env.var_to_range[symbol] for symbol in symbols}
    return SymbolicInputs(
        inputs,
        exported.call_spec.in_spec,
        casts_of(leaves),
        {symbol: (limit.lower, limit.upper) for symbol, limit in limits.items()},
        tuple(guard for guard in guards if guard != sympy.true),
        {symbol: int(env.backed_var_to_val[symbol]) for symbol in symbols},
    )


def shape_envs(value: object) -> Iterable[ShapeEnv]:
    """Where the symbols of a value are known."""
    numbers = (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)
    return (each.node.shape_env for each in numbers if isinstance(each, torch.SymInt))


class Reader:
    """Reads the expressions of sizes.

    Attributes:
        found: What each expression is in simpler words.
    """

    def __init__(self, env: ShapeEnv) -> None:
        self.env = env
        self.found: dict[sympy.Expr, sympy.Expr] = {}

    def expr(self, number: Any) -> sympy.Expr:
        """The expression of a number."""
        if not isinstance(number, SYMBOLIC):
            return sympy.sympify(number)
        expr = number.node.expr
        if expr not in self.found:
            self.found[expr] = self.env.simplify(expr)
        return self.found[expr]

    def size(self, number: Any) -> Any:
        """A number as it was in the call, with its expression.

        Raises:
            ValueError: It depends on values of tensors.
        """
        if not isinstance(number, SYMBOLIC):
            return number
        if not number.node.has_hint():
            raise ValueError(f"{number} depends on the values of inputs")
        return make_size(number.node.hint, self.expr(number))

    def input(self, value: object, leaf: object) -> InputTensor | InputNumber | InputConstant:
        """What an input must be."""
        if isinstance(leaf, torch.Tensor):
            assert isinstance(value, torch.Tensor)
            shape, stride = (tuple(map(self.expr, of)) for of in (value.shape, value.stride()))
            return InputTensor(shape, stride, leaf.dtype, leaf.device)
        if isinstance(value, torch.SymInt):
            return InputNumber(self.expr(value))
        return InputConstant(type(leaf), repr(leaf))


def put_numbers(gm: fx.GraphModule) -> None:
    """Put numbers that know their expression where nodes give sizes, and into fake tensors.

    Raises:
        ValueError: A size depends on the values of tensors.
    """
    values = pytree.tree_leaves([node.meta.get("val") for node in gm.graph.nodes])
    env = next((each for value in values for each in shape_envs(value)), None)
    if env is not None:
        reader = Reader(env)
        put_arguments(gm.graph, reader)
        put_values(gm.graph, reader)


def put_arguments(graph: fx.Graph, reader: Reader) -> None:
    """Put numbers where nodes give them, and take these nodes out."""
    for node in graph.find_nodes(op="call_function", target=aten._assert_scalar.default):
        graph.erase_node(node)  # guards say it
    numbers = {
        node: reader.size(node.meta["val"])
        for node in graph.nodes
        if is_number(node.meta.get("val"))
        and (node.op == "call_function" or isinstance(node.meta["val"], SYMBOLIC))
    }
    for node in graph.nodes:
        if node not in numbers and not numbers.keys().isdisjoint(node.all_input_nodes):
            node.args, node.kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda source: numbers.get(source, source)
            )
    for node in reversed(numbers):
        if node.op == "call_function":
            graph.erase_node(node)


def put_values(graph: fx.Graph, reader: Reader) -> None:
    """Let the values of nodes be those of the call, and note the sizes of tensors."""

    def settle(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return reader.size(value)
        shape, stride = (list(map(reader.size, of)) for of in (value.shape, value.stride()))
        return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)

    with FakeTensorMode(allow_non_fake_inputs=True):
        for node in graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and any(
                isinstance(size, torch.SymInt) for size in value.shape
            ):
                node.meta["sizes"] = tuple(map(reader.size, value.shape))
            if value is not None:
                node.meta["val"] = pytree.tree_map(settle, value)
            for key in STALE:
                node.meta.pop(key, None)


def is_number(value: object) -> bool:
    """Whether a node's value is a number or a truth value."""
    return isinstance(value, (*SYMBOLIC, int, float))
