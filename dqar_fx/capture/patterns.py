"""Patterns of values: what a call passes or returns, apart from the numbers in its tensors.

A pattern is made of a value once, and is then compared with values and filled with tensors
many times, at each call of a block: so it is plain tuples and dicts that it knows by itself,
and `torch.utils._pytree` that it asks for all else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from dqar_fx.passes import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
"""Values that a graph has for constants."""


@dataclass(frozen=True)
class Plain:
    """A value that is no tensor and holds nothing.

    Attributes:
        kind: Its type: 1 equals True.
        text: How it is written: 0.0 equals -0.0.
        value: The value.
    """

    kind: type
    text: str
    value: Any = field(compare=False)


@dataclass(frozen=True)
class Group:
    """A tuple, a list or a dict.

    Attributes:
        kind: Which of them.
        keys: Those of a dict, in order; None for the others.
        parts: What it holds.
    """

    kind: type
    keys: tuple[Any, ...] | None
    parts: tuple[Pattern, ...]


@dataclass(frozen=True)
class Node:
    """A value of a class that pytree knows.

    Attributes:
        spec: How the value is made of leaves.
        parts: The leaves.
    """

    spec: pytree.TreeSpec
    parts: tuple[Pattern, ...]


@dataclass(frozen=True)
class Unknown:
    """A value that no graph can take: neither tensor nor plain, of a class of its own."""

    kind: type


Pattern = TensorSpec | Plain | Group | Node | Unknown


def pattern_of(value: Any) -> Pattern:
    """The pattern that a value has."""
    if isinstance(value, torch.Tensor):
        return TensorSpec.of(value)
    if isinstance(value, PLAIN):
        return Plain(type(value), repr(value), value)
    if type(value) in (tuple, list):
        return Group(type(value), None, tuple(map(pattern_of, value)))
    if type(value) is dict:
        return Group(dict, tuple(value), tuple(map(pattern_of, value.values())))
    leaves, spec = pytree.tree_flatten(value)
    if spec.is_leaf():
        return Unknown(type(value))
    return Node(spec, tuple(map(pattern_of, leaves)))


def parts_of(pattern: Pattern) -> Iterator[Pattern]:
    """The innermost parts of a pattern, in order."""
    if isinstance(pattern, (Group, Node)):
        for part in pattern.parts:
            yield from parts_of(part)
    else:
        yield pattern


def tensors_of(pattern: Pattern) -> tuple[TensorSpec, ...]:
    """The tensors of a pattern, in order."""
    return tuple(part for part in parts_of(pattern) if isinstance(part, TensorSpec))


def unknown_in(pattern: Pattern) -> str:
    """The class of a part that no graph can take; empty for none."""
    found = (part for part in parts_of(pattern) if isinstance(part, Unknown))
    return next((part.kind.__name__ for part in found), "")


def fill(pattern: Pattern, tensors: Iterator[torch.Tensor]) -> Any:
    """A value of a pattern, with these tensors in it."""
    if type(pattern) is TensorSpec:
        return next(tensors)
    if type(pattern) is Plain:
        return pattern.value
    assert isinstance(pattern, (Group, Node)), "what is unknown cannot be made"
    parts = [fill(part, tensors) for part in pattern.parts]
    if isinstance(pattern, Node):
        return pytree.tree_unflatten(parts, pattern.spec)
    if pattern.keys is not None:
        return dict(zip(pattern.keys, parts, strict=True))
    return parts if pattern.kind is list else tuple(parts)


def fits(
    value: Any, pattern: Pattern, found: list[torch.Tensor], *, settles: bool = False
) -> bool:
    """Whether a value has a pattern, whatever its strides; collects its tensors.

    Args:
        value: The value.
        pattern: The pattern.
        found: Gets the tensors of the value, in order.
        settles: Whether tensors of other strides are taken as copies with the pattern's.
    """
    kind = type(pattern)
    if kind is TensorSpec:
        assert isinstance(pattern, TensorSpec)
        if not isinstance(value, torch.Tensor):
            return False
        is_alike = (
            value.shape == pattern.shape
            and value.dtype == pattern.dtype
            and value.device == pattern.device
        )
        if is_alike and settles and value.stride() != pattern.stride:
            value = torch.empty_strided(
                pattern.shape, pattern.stride, dtype=value.dtype, device=value.device
            ).copy_(value)
        found.append(value)
        return is_alike
    if kind is Plain:
        assert isinstance(pattern, Plain)
        return value is pattern.value or (
            type(value) is pattern.kind and repr(value) == pattern.text
        )
    if kind is Group:
        assert isinstance(pattern, Group)
        return type(value) is pattern.kind and fits_group(value, pattern, found, settles)
    if kind is Node:
        assert isinstance(pattern, Node)
        leaves, spec = pytree.tree_flatten(value)
        return spec == pattern.spec and fits_all(leaves, pattern.parts, found, settles)
    return False


def fits_group(value: Any, group: Group, found: list[torch.Tensor], settles: bool) -> bool:
    """Whether a tuple, a list or a dict has a pattern."""
    if group.keys is None:
        return fits_all(value, group.parts, found, settles)
    return tuple(value) == group.keys and fits_all(value.values(), group.parts, found, settles)


def fits_all(
    values: Any, parts: Sequence[Pattern], found: list[torch.Tensor], settles: bool
) -> bool:
    """Whether each of several values has its pattern."""
    if len(values) != len(parts):
        return False
    return all(
        fits(value, part, found, settles=settles)
        for value, part in zip(values, parts, strict=True)
    )


def contiguous(pattern: Pattern, *, overlapping: bool = False) -> Pattern:
    """A pattern whose tensors are contiguous.

    Args:
        pattern: The pattern.
        overlapping: Whether only those change of which several elements are one in memory.
    """
    if isinstance(pattern, TensorSpec):
        pairs = zip(pattern.shape, pattern.stride, strict=True)
        if overlapping and all(stride or size == 1 for size, stride in pairs):
            return pattern
        stride = torch.empty(pattern.shape, device="meta").stride()
        return replace(pattern, stride=stride)
    if isinstance(pattern, (Group, Node)):
        parts = (contiguous(part, overlapping=overlapping) for part in pattern.parts)
        return replace(pattern, parts=tuple(parts))
    return pattern


def spell(pattern: Pattern) -> str:
    """A pattern in words, for messages."""
    if isinstance(pattern, TensorSpec):
        return f"{str(pattern.dtype).removeprefix('torch.')}{list(pattern.shape)}"
    if isinstance(pattern, Plain):
        return pattern.text
    if isinstance(pattern, Unknown):
        return pattern.kind.__name__
    names = pattern.keys if isinstance(pattern, Group) else None
    parts = list(map(spell, pattern.parts))
    if names is not None:
        parts = [f"{name}={part}" for name, part in zip(names, parts, strict=True)]
    return f"({', '.join(parts)})"
