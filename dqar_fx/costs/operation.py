"""An operator at its true shapes: what is counted once and timed once, wherever it occurs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dqar_fx.passes.support.graphs import parameter_path

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten


def count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the floating-point operations of a fused attention from its arguments' shapes."""
    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


def count_product(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Count the operations of a product of matrices of integers, as of any numbers."""
    flops: int = 2 * left[0] * left[1] * right[1]
    return flops


UNKNOWN_TO_TORCH = {
    aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
    aten._int_mm: count_product,
}
"""Formulas for operators that PyTorch's counter takes to be free."""


@dataclass(frozen=True)
class Operand:
    """A tensor argument.

    Attributes:
        shape: Shape of the tensor.
        stride: Strides of the tensor, in elements.
        dtype: Dtype of the tensor.
        is_parameter: Whether each occurrence of the operator has a tensor of its own.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    is_parameter: bool = False

    @classmethod
    def of(cls, value: torch.Tensor, *, is_parameter: bool = False) -> Operand:
        """Describe a tensor, fake or not."""
        return cls(tuple(value.shape), tuple(value.stride()), value.dtype, is_parameter)

    @property
    def nbytes(self) -> int:
        """Bytes that are touched when all of it is read: what is expanded, once."""
        size = self.dtype.itemsize
        for length, stride in zip(self.shape, self.stride, strict=True):
            size *= length if stride else min(length, 1)
        return size

    def allocate(self, device: torch.device) -> torch.Tensor:
        """Make a tensor like it; floating point numbers are random, integers zero."""
        empty = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        if empty.is_meta:
            return empty
        if self.dtype.is_floating_point and self.dtype.itemsize > 1:
            return empty.normal_() if 0 not in self.stride else empty.fill_(0.5)
        return empty.zero_()

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Operation:
    """An operator and its arguments, tensors as `Operand`, keywords sorted by name."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, node: fx.Node, source: Callable[[fx.Node], fx.Node]) -> Operation:
        """Describe what a call calls; ``source`` gives the node whose memory a node shows."""

        def operand(arg: fx.Node) -> Any:
            owned = parameter_path(source(arg)) is not None
            make = partial(Operand.of, is_parameter=owned)
            return map_leaves(arg.meta.get("val"), torch.Tensor, make)

        def freeze(argument: Any) -> Any:
            """An argument with operands for nodes, hashable: lists become tuples."""
            return map_leaves(fx.map_arg(argument, operand), Operand, lambda each: each)

        args = tuple(map(freeze, node.args))
        named = ((name, freeze(value)) for name, value in node.kwargs.items())
        assert callable(node.target)
        return cls(node.target, args, tuple(sorted(named)))

    @property
    def operands(self) -> list[Operand]:
        """Its tensor arguments."""
        found: list[Operand] = []
        map_leaves((self.args, self.kwargs), Operand, found.append)
        return found

    def scaled(self, factor: int) -> Operation:
        """Give all but the parameters ``factor`` times as many rows.

        What is broadcast to other operands stays as it is.
        """
        flowing = [each for each in self.operands if not each.is_parameter and each.shape]
        rank = max((len(each.shape) for each in flowing), default=0)
        rows = max((each.shape[0] for each in flowing if len(each.shape) == rank), default=0)

        def scale(operand: Operand) -> Operand:
            shape = operand.shape
            if operand.is_parameter or len(shape) != rank or not rank or shape[0] != rows:
                return operand
            step = max(operand.stride[0], prod(shape[1:]))
            return replace(
                operand,
                shape=(rows * factor, *shape[1:]),
                stride=(step, *operand.stride[1:]),
            )

        return replace(self, args=map_leaves(self.args, Operand, scale))

    def as_compiled(self) -> Operation:
        """Give what Inductor calls in its place: a linear is a product of matrices."""
        if self.target is not aten.linear.default:
            return self
        x, weight, *rest = self.args
        bias = rest[0] if rest else None
        rows, width = x.nbytes // x.dtype.itemsize // x.shape[-1], x.shape[-1]
        left = replace(x, shape=(rows, width), stride=(width, 1))
        right = replace(weight, shape=weight.shape[::-1], stride=weight.stride[::-1])
        if bias is None:
            return Operation(aten.mm.default, (left, right))
        return Operation(aten.addmm.default, (bias, left, right))

    def prepare(self, device: torch.device) -> Callable[[], Any]:
        """Make a call of it with tensors of its own."""
        given = self.args, dict(self.kwargs)
        made = map_leaves(given, Operand, lambda operand: operand.allocate(device))
        args, kwargs = map_leaves(made, torch.device, lambda _: device)
        return lambda: self.target(*args, **kwargs)

    def __str__(self) -> str:
        shapes = ", ".join(str(operand) for operand in self.operands)
        return f"{str(self.target).removeprefix('aten.')}({shapes})"


@cache
def count_macs(operation: Operation) -> int:
    """Count multiply-accumulates, by PyTorch's counter on the meta device."""
    if len(operation.operands) < 2:
        return 0  # a product has two factors
    call = operation.prepare(torch.device("meta"))
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        call()
    flops: int = counter.get_total_flops()
    return flops // 2


def map_leaves(
    value: Any, kind: type | tuple[type, ...], function: Callable[[Any], Any]
) -> Any:
    """Apply a function to each value of a kind among nested ones; lists become tuples."""
    if isinstance(value, list | tuple):
        return tuple(map_leaves(each, kind, function) for each in value)
    if isinstance(value, dict):
        return {name: map_leaves(each, kind, function) for name, each in value.items()}
    return function(value) if isinstance(value, kind) else value
