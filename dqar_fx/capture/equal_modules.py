"""Modules of a model that compute the same, each with parameters of its own.

Two modules are equal if they have the same class and everything they hold is equal, down to
the last inner module: numbers, texts, settings. Of parameters and buffers the metadata counts,
not the values; of what cannot be compared, such as a function, a hook, a tensor that is no
buffer or a module that is no part, only the same object is equal. So a block that knows its
own number, or the last one, which leaves something out, equals no other.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .offloaded import HOOKED

COMPARED = {type(None), bool, int, str, bytes, torch.dtype, torch.device}
"""Types whose values are compared with ``==``."""
EMPTY = {dict, OrderedDict}
"""Types of what a module holds hooks and parts in."""
REGISTERED = ("_parameters", "_buffers")
"""Attributes of a module with tensors that a graph reads by their path."""
TOLD_APART = {*REGISTERED, *HOOKED}
"""Attributes that are described in a way of their own, also where they hold nothing."""
STANDS_IN = "_dqar_fx_stands_in"
"""Attribute of a function that counts as the forward that it was put before."""


def find_equal_modules(model: nn.Module) -> list[list[str]]:
    """Paths of the elements of a model's lists that are equal, in groups of a list."""
    found = []
    for path, owner in model.named_modules():
        if isinstance(owner, nn.ModuleList):
            groups = defaultdict(list)
            for name, each in owner.named_children():
                groups[describe_module(each)].append(f"{path}.{name}".removeprefix("."))
            found += [group for group in groups.values() if len(group) > 1]
    return found


def describe_module(module: nn.Module) -> Hashable:
    """What a module has in common with those that equal it."""
    return ValueDescriber().of_module(module)


def tensor_metadata(tensor: torch.Tensor) -> Hashable:
    """Describe all about a tensor but its values."""
    layout = *tensor.shape, *tensor.stride(), tensor.storage_offset()
    kind = tensor.dtype, tensor.device, tensor.requires_grad
    return tensor.dim(), tuple(map(describe_number, layout)), *kind


def describe_number(number: Any) -> Hashable:
    """A number, or what stands for one that depends on sizes."""
    return SymbolicNumber(number) if isinstance(number, torch.SymInt) else number


@dataclass(frozen=True, eq=False)
class SymbolicNumber:
    """A number that depends on sizes, which may turn out to be equal as a model is traced.

    Attributes:
        value: The number.
    """

    value: torch.SymInt

    def __eq__(self, other: object) -> bool:
        theirs = other.value.node.expr if isinstance(other, SymbolicNumber) else other
        return bool(self.value.node.expr == theirs)

    def __hash__(self) -> int:
        return hash(SymbolicNumber)


@dataclass(frozen=True, eq=False)
class ObjectIdentity:
    """A value that equals no other one.

    Attributes:
        value: The value, kept so that its number is not given to another one.
    """

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class ValueDescriber:
    """Describes values so that what is equal has equal descriptions.

    What is met again is described by when it was met first: values that share something are
    alike only if they share it in the same places, and cycles end.
    """

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._alive: list[object] = []  # so that no number is given to another object

    def of_value(self, value: object) -> Hashable:
        """The description of anything."""
        kind = type(value)
        if kind in COMPARED:
            return kind, value
        if kind is torch.SymInt:
            return kind, describe_number(value)
        if kind in (float, complex):
            return kind, repr(value)  # 0.0 equals -0.0
        if isinstance(value, enum.Enum):
            return kind, value.name
        if kind in EMPTY and not value:
            return kind
        known = self._meet(value)
        if known is None and isinstance(value, nn.Module):
            return ObjectIdentity(value)  # its parameters have other paths than a part's
        return known or (kind, *self._of_parts(value))

    def of_module(self, module: nn.Module) -> Hashable:
        """The description of a module that is described or part of one."""
        known = self._meet(module)
        if known is not None:
            return known
        held: list[Any] = [type(module)]
        for name, value in vars(module).items():
            kind = type(value)
            if kind in COMPARED and name not in HOOKED:  # most of what a module holds
                held.append((name, kind, value))
            elif kind in EMPTY and not value and name not in TOLD_APART:
                held.append((name, kind))
            elif not (name == "forward" and hasattr(value, STANDS_IN)):
                held.append((name, self._of_held(name, value)))
        return tuple(held)

    def _of_held(self, name: str, value: Any) -> Hashable:
        if name in REGISTERED:
            return self._of_tensors(value)
        if name in HOOKED:  # what hooks hold changes as they run
            return ObjectIdentity(value)
        if name == "_modules":
            return tuple((n, m is not None and self.of_module(m)) for n, m in value.items())
        return self.of_value(value)

    def _meet(self, value: object) -> Hashable:
        """Tell when a value was met first; None if that is now."""
        if id(value) in self._met:
            return "again", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        return None

    def _of_parts(self, value: Any) -> tuple[Hashable, ...]:
        if type(value) is dict:
            return tuple((self.of_value(k), self.of_value(v)) for k, v in value.items())
        if type(value) in (list, tuple):
            return tuple(map(self.of_value, value))
        parts = take_apart(value)
        return (ObjectIdentity(value),) if parts is None else tuple(map(self.of_value, parts))

    def _of_tensors(self, tensors: dict[str, torch.Tensor | None]) -> Hashable:
        return tuple(
            (name, tensor is not None and (self._meet(tensor) or tensor_metadata(tensor)))
            for name, tensor in dict.items(tensors)  # its own: they may be out of reach
        )


def take_apart(value: object) -> tuple[object, ...] | None:
    """All that an object holds, as pickle would store it; None if pickle could not.

    A tensor is not taken apart: as no parameter or buffer, it is a constant of the graph.
    """
    if isinstance(value, (type, torch.Tensor)):
        return None
    try:
        parts = value.__reduce_ex__(4)
    except Exception:  # whatever a class raises there, it says that it cannot be stored
        return None
    if isinstance(parts, str):
        return None
    build, arguments, *state = parts
    return build, arguments, *(tuple(s) if isinstance(s, Iterator) else s for s in state)
