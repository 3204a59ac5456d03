"""Arguments in the order of a signature, found once for each way of passing them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from inspect import Signature

Source = int | str
"""Where an argument comes from: its place among the positional ones, or its keyword."""


@dataclass(frozen=True)
class Binding:
    """How the arguments of one way of calling are ordered.

    Attributes:
        positional: The sources of the arguments that are passed by position.
        named: The sources of those that are passed by name.
        as_tuple: The source of ``return_dict``; None where it is not passed.
    """

    positional: tuple[Source, ...]
    named: Mapping[str, Source]
    as_tuple: Source | None


class Binder:
    """Puts arguments in the order of a signature.

    Args:
        signature: The signature.
        takes_return_dict: Whether ``return_dict`` says how the result is given, and is taken
            out.
        as_given: Whether arguments stay by name that are given so. What stands before a
            forward, such as the scale of LoRA layers in diffusers, may look by name only.
    """

    def __init__(
        self, signature: Signature, *, takes_return_dict: bool, as_given: bool = False
    ) -> None:
        self._signature, self._takes_return_dict = signature, takes_return_dict
        self._as_given = as_given
        self._known: dict[tuple[int | str, ...], Binding] = {}

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """Arguments by position and by name, and whether a tuple is asked for.

        Raises:
            TypeError: They do not fit the signature.
        """
        key: tuple[int | str, ...] = (len(args), *kwargs)
        if key not in self._known:
            self._known[key] = self._find(len(args), kwargs)
        found = self._known[key]

        def read(source: Source) -> Any:
            return args[source] if isinstance(source, int) else kwargs[source]

        as_tuple = found.as_tuple is not None and not read(found.as_tuple)
        positional = tuple(map(read, found.positional))
        return (
            positional,
            {name: read(source) for name, source in found.named.items()},
            as_tuple,
        )

    def _find(self, num_args: int, names: Mapping[str, Any]) -> Binding:
        bound = self._signature.bind(*range(num_args), **{name: name for name in names})
        as_tuple = None
        if self._takes_return_dict:
            as_tuple = bound.arguments.pop("return_dict", None)
        if not self._as_given:
            return Binding(bound.args, bound.kwargs, as_tuple)
        given = tuple(source for source in bound.args if isinstance(source, int))
        by_name = {source: source for source in bound.args if isinstance(source, str)}
        return Binding(given, by_name | bound.kwargs, as_tuple)


def take_scale(kwargs: dict[str, Any], name: str | None) -> tuple[dict[str, Any], float]:
    """Keyword arguments without the scale of adapters, and that scale; 1 if there is none."""
    if name not in kwargs:
        return kwargs, 1.0
    given, scale = kwargs[name], 1.0
    if isinstance(given, dict) and is_number(given.get("scale")):
        scale = float(given["scale"])
        given = {key: value for key, value in given.items() if key != "scale"}
    rest = {key: value for key, value in kwargs.items() if key != name}
    return {**rest, name: given} if given else rest, scale


def is_number(value: object) -> bool:
    """Whether a value is a number, of Python, of numpy or in a tensor."""
    is_single = isinstance(value, torch.Tensor) and value.numel() == 1
    return is_single or isinstance(value, Real)
