"""Equal tensors that a denoiser holds once.

A denoiser shares its tensors with the model it was made of. Where several of them are equal,
all of the denoiser's show the memory of the first: once the model itself is gone, so are the
others. As long as it is there its tensors may be written to, so that
`SharedTensors.loosen` looks again whether they are still equal.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.equal_tensors import (
    find_tensor,
    group_equal,
    is_comparable,
    memory_of,
    sum_bits,
    tensor_layout,
)
from dqar_fx.passes.support.inner_tensors import named_tensors

from .adapters import base_name, find_layers, layer_weights
from .offloaded import moves_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    import torch
    from torch import nn


class SharedTensors:
    """Which tensors of a denoiser's fork show one memory.

    Args:
        original: The model that the fork was made of; None where nothing else has its memory.

    Attributes:
        groups: Names of tensors that are equal, and the bytes that tying them saves.
    """

    def __init__(self, original: nn.Module | None = None) -> None:
        self._original = None if original is None else weakref.ref(original)
        self._seen = memory_by_name(self._named_originals())
        modules = () if original is None else original.modules()
        self._is_moved = any(map(moves_in_place, modules))  # by hooks, put on before
        self.groups: dict[tuple[str, ...], int] = {}

    @property
    def merged_bytes(self) -> int:
        """What the original holds beyond the fork."""
        return sum(self.groups.values())

    def take_over(self, other: SharedTensors) -> None:
        """Know of a fork of the fork what is known of the fork."""
        self._original, self.groups = other._original, dict(other.groups)
        self._seen, self._is_moved = dict(other._seen), other._is_moved

    def __reduce__(self) -> tuple[type[SharedTensors], tuple[()]]:
        """A copy has memory of its own, and ties it anew."""
        return SharedTensors, ()

    @property
    def original(self) -> nn.Module | None:
        """The model that the fork was made of; None once it is gone."""
        return None if self._original is None else self._original()

    def _named_originals(self) -> dict[str, torch.Tensor]:
        """The original's tensors by the names that they have without adapters around them."""
        named = {} if self.original is None else named_tensors(self.original)
        return {base_name(name): each for name, each in named.items()}

    def describe_originals(self) -> dict[tuple[str, Hashable], Hashable]:
        """What the original's tensors show, and a number of their bits, by name and layout.

        Nothing counts writes through ``.data``.
        """
        return {
            (name, tensor_layout(each)): (
                memory_of(each),
                is_comparable(each) and int(sum_bits(each)),
            )
            for name, each in self._named_originals().items()
        }

    def find_apart(self, model: nn.Module) -> set[str]:
        """Names of a fork's tensors that are like the original's, but in other memory."""
        own = {base_name(name): each for name, each in named_tensors(model).items()}
        return {
            name
            for name, each in self._named_originals().items()
            if name in own
            and tensor_layout(own[name]) == tensor_layout(each)
            and memory_of(own[name]) != memory_of(each)
        }

    def follow(self, model: nn.Module) -> bool:
        """Show the memory that the original's tensors show now; whether any is another.

        Those of a fork that was moved or converted since, and shows no memory of it, stay.

        Raises:
            DqarError: Parameters that hooks move in place were replaced.
        """
        if self.original is None:
            return False
        if self._is_moved:
            self._refuse_replaced(model)
        theirs = self._named_originals()
        own = {base_name(name): each for name, each in named_tensors(model).items()}
        before, self._seen = self._seen, memory_by_name(theirs)
        changed = [
            name
            for name, memory in self._seen.items()
            if before.get(name, memory) != memory and name in own
            if memory_of(own[name]) == before[name]
            and tensor_layout(own[name]) == tensor_layout(theirs[name])
        ]
        for name in changed:
            own[name].data = theirs[name].data
        return bool(changed)

    def _refuse_replaced(self, model: nn.Module) -> None:
        """Raise where parameters that hooks move in place are others than the fork's.

        Hooks of diffusers do. The parameters are the fork's own, and their memory may be
        another one after each call, so that what is written to others cannot be followed.

        Raises:
            DqarError: There are some.
        """
        own = dict(model.named_parameters(remove_duplicate=False))
        theirs = () if self.original is None else self.original.named_modules()
        for path, module in theirs:
            if not moves_in_place(module):
                continue
            for name, parameter in module.named_parameters(path, remove_duplicate=False):
                if own.get(name, parameter) is not parameter:
                    raise DqarError(
                        f"{name}, which a hook moves or casts, was replaced after transform. "
                        "Write to it instead (load_state_dict without assign=True), or "
                        "transform the model anew"
                    )

    def tie(self, model: nn.Module) -> None:
        """Let equal tensors of the fork show one memory; not of adapters, which may change."""
        weights = (each for _, layer in find_layers(model) for each in layer_weights(layer))
        changing = set(map(id, weights))
        every = named_tensors(model).items()
        named = {name: each for name, each in every if id(each) not in changing}
        names, tensors = list(named), list(named.values())
        for group in group_equal(tensors):
            first, others = tensors[group[0]], [tensors[i] for i in group[1:]]
            apart = [other for other in others if memory_of(other) != memory_of(first)]
            if not apart:
                continue
            for other in apart:
                other.data = first.data
            saved = sum(other.nbytes for other in apart)
            self.groups[tuple(names[i] for i in group)] = saved

    def untie(self, model: nn.Module) -> dict[tuple[str, ...], int]:
        """Give each tensor memory of its own: its original's where they are equal.

        Returns:
            The groups as they were.
        """
        groups, self.groups = self.groups, {}
        theirs = self._named_originals()
        for names in groups:
            first = find_tensor(model, names[0])
            for name in names[1:]:
                own = find_tensor(model, name)
                its = theirs.get(base_name(name), own)
                is_theirs = its is not own and group_equal([first, its])
                own.data = its.data if is_theirs else first.data.clone()
        return groups

    def loosen(self, model: nn.Module) -> bool:
        """Untie tensors whose originals are equal no longer; whether there were any."""
        named = self._named_originals()
        theirs = {
            names: [named[base_name(name)] for name in names]
            for names in self.groups
            if named.keys() >= set(map(base_name, names))
        }
        changed = [
            names
            for names, tensors in theirs.items()
            if group_equal(tensors) != [list(range(len(tensors)))]  # not all of one group
        ]
        for names in changed:
            own = [find_tensor(model, name) for name in names]
            if memory_of(own[0]) == memory_of(theirs[names][0]):  # not moved since
                for tensor, its in zip(own, theirs[names], strict=True):
                    tensor.data = its.data
            del self.groups[names]
        return bool(changed)


def memory_by_name(named: Mapping[str, torch.Tensor]) -> dict[str, Hashable]:
    """What each tensor shows."""
    return {name: memory_of(each) for name, each in named.items()}


def once_per_memory(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that gives one result for tensors that are the same view.

    Of tensors that consist of others each has a result of its own, which is tied anew.
    """
    results: dict[Hashable, Any] = {}

    def apply(tensor: torch.Tensor) -> Any:
        if is_traceable_wrapper_subclass(tensor):
            return fn(tensor)
        key = memory_of(tensor)
        if key not in results:
            results[key] = fn(tensor)
        return results[key]

    return apply
