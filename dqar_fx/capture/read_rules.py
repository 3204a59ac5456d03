"""Functions that may read values on the host, and what is done about each.

A rule gives the answer of a call, or a call to make in its place, whose values are constants
where they are those of masks and numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils import _pytree as pytree

from .known_values import untraced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Rule = Callable[["ReadsValues", Callable[..., Any], Sequence[Any], dict[str, Any]], Any]

Tensor = torch.Tensor


class ReadsValues(Protocol):
    """What knows the values of tensors that are traced."""

    def value_of(self, tensor: Tensor) -> Tensor:
        """The value of a tensor."""

    def constant(self, value: Tensor) -> Tensor:
        """A tensor of the graph that always has a value."""

    def number(self, tensor: Tensor) -> Any:
        """The number that a tensor without dimensions is."""

    def answer(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a function of values alone."""

    def places(self, mask: Tensor, shape: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Where a mask, of a shape, is true."""

    def index(self, index: Any) -> Any:
        """An index with constants where it has masks and numbers that are tensors."""


@dataclass(frozen=True)
class Answer:
    """The result of a call that is not made."""

    result: Any


def answer(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """Let what a function reads be known."""
    return Answer(reads.answer(func, args, kwargs))


def answer_condition(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """``torch.where`` of a condition alone reads it; of three arguments it does not."""
    alone = len(args) + len(kwargs) == 1
    return answer(reads, func, args, kwargs) if alone else (func, args, kwargs)


def answer_classes(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """``one_hot`` reads how many classes there are, unless it is told."""
    told = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
    return answer(reads, func, args, kwargs) if told == -1 else (func, args, kwargs)


def index_by_places(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """``x[mask]`` and ``x[mask] = y`` have places in the mask's stead."""
    x, index, *value = args
    if isinstance(index, list):
        return func, args, kwargs
    return func, (x, reads.index(index), *value), kwargs


def select_by_places(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """``masked_select(x, mask)`` is ``x[mask]``, once both have one shape."""
    given = dict(zip(("x", "mask"), args, strict=False))
    given |= {("x" if k == "input" else k): v for k, v in kwargs.items()}
    sizes = given["x"].shape, given["mask"].shape
    shape = torch.broadcast_shapes(*sizes)  # type: ignore[no-untyped-call]

    places = reads.places(given["mask"], shape)
    del func
    return (lambda x, *at: x.expand(shape)[at]), (given["x"], *places), {}


def repeat_by_places(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """``repeat_interleave`` by a tensor of repeats is a selection of its rows."""
    given = dict(zip(("self", "repeats", "dim"), args, strict=False))
    given |= {("self" if k == "input" else k): v for k, v in kwargs.items()}
    repeats = given.get("repeats")
    if repeats is None:
        return answer(reads, func, args, kwargs)
    if not isinstance(repeats, Tensor):
        return func, args, kwargs

    value = reads.value_of(repeats)

    def select(x: Tensor, dim: int | None) -> Tensor:
        x, dim = (x.flatten(), 0) if dim is None else (x, dim)
        with untraced():
            rows = torch.repeat_interleave(value.reshape(-1).expand(x.shape[dim]))
        return x.index_select(dim, reads.constant(rows))

    return select, (given["self"], given.get("dim")), {}


def take_numbers(reads: ReadsValues, func: Any, args: Any, kwargs: Any) -> Any:
    """Where a function expects numbers, tensors without dimensions are read."""
    own = 0 if func in FACTORIES else 1

    def number(value: Any) -> Any:
        is_number = isinstance(value, Tensor) and value.dim() == 0
        return reads.number(value) if is_number else value

    rest, kwargs = pytree.tree_map(number, (tuple(args[own:]), dict(kwargs)))
    return func, (*args[:own], *rest), kwargs


FACTORIES = (torch.arange, torch.linspace, torch.zeros, torch.ones, torch.empty, torch.full)
RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__),
            *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__complex__),
            *(Tensor.__index__, Tensor.__contains__, Tensor.__format__),
            *(Tensor.is_nonzero, torch.is_nonzero, Tensor.equal, torch.equal),
            *(Tensor.allclose, torch.allclose, Tensor.bincount, torch.bincount),
            *(Tensor.nonzero, torch.nonzero, Tensor.argwhere, torch.argwhere),
            *(Tensor.unique, torch.unique),
            *(Tensor.unique_consecutive, torch.unique_consecutive),
        ),
        answer,
    ),
    torch.where: answer_condition,
    torch.nn.functional.one_hot: answer_classes,
    Tensor.__getitem__: index_by_places,
    Tensor.__setitem__: index_by_places,
    Tensor.masked_select: select_by_places,
    torch.masked_select: select_by_places,
    Tensor.repeat_interleave: repeat_by_places,
    torch.repeat_interleave: repeat_by_places,
    **dict.fromkeys(
        (
            *FACTORIES,
            *(torch.narrow, Tensor.narrow, Tensor.repeat, Tensor.expand, Tensor.view),
            *(Tensor.reshape, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full),
            torch.nn.functional.pad,
        ),
        take_numbers,
    ),
}
"""Functions that may read values, and what is done about it."""
