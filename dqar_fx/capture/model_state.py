"""What a captured graph depends on beside the inputs of the call: the state of the model.

A pipeline may change the model that it holds, such as its attention processors, in a request,
and change it back at the end. A state is all that a model holds, down to the last inner
module, but for the values of its tensors, and names and scales of adapters. Equal states
have one number, so that what was captured in a state is found again when the model is back in
it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import count

import torch
from torch import nn

from dqar_fx.passes.support.equal_tensors import memory_of, version_of

from .adapters import ModelInputs, only_active_adapters
from .equal_modules import ValueDescriber

PROCESSOR = "processor"
"""The attribute of attention modules that pipelines write to, past any method of the model."""


class ModelState:
    """Numbers the states of a model.

    The whole model is looked at anew after `look_again`. Between such looks only the
    processors of its attention modules are, at each call.

    Args:
        model: The model.

    Attributes:
        latest: The number that was asked for last; None before the first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.latest: int | None = None
        self._numbers: dict[Hashable, int] = {}
        self._unused = count()
        self.look_again()

    def __reduce__(self) -> tuple[type[ModelState], tuple[nn.Module]]:
        """A copy numbers the states of a copy of the model."""
        return ModelState, (self._model,)

    @property
    def number(self) -> int:
        """The number of the state that the model is in."""
        if not self._is_known or [held.get(PROCESSOR) for held in self._holders] != self._held:
            self._describe()
        assert self.latest is not None, "described just now, or before"
        return self.latest

    def look_again(self) -> None:
        """Look at the whole model when next the number is asked for."""
        self._is_known = False

    def take_over(self, other: ModelState) -> None:
        """Give the state of this model, which is a fork of another, the other's number."""
        self._numbers.clear()
        self._unused = count(other.number)
        self._describe()

    def _describe(self) -> None:
        self._holders = [
            held
            for module in self._model.modules()
            for held in (vars(module), module._modules)
            if PROCESSOR in held
        ]
        self._held = [held[PROCESSOR] for held in self._holders]
        with only_active_adapters(self._model):
            described = StateDescriber().of_module(self._model)
        if described not in self._numbers:
            self._numbers[described] = next(self._unused)
        self.latest, self._is_known = self._numbers[described], True


class StateDescriber(ValueDescriber):
    """Describes a model whose tensors may be put away, or share memory at times."""

    def _of_tensors(self, tensors: Mapping[str, torch.Tensor | None]) -> Hashable:
        return tuple(
            (name, tensor is not None and (self._meet(tensor) or kind_of(tensor)))
            for name, tensor in tensors.items()
        )


def kind_of(tensor: torch.Tensor) -> Hashable:
    """What of a tensor a graph depends on."""
    return tensor.shape, tensor.dtype, tensor.device


def describe_weights(model: nn.Module) -> dict[str, Hashable]:
    """What graphs are given: memory of tensors, how often these were written to, scales."""
    given = ModelInputs.of(model)
    memory = {
        name: (memory_of(each), version_of(each)) for name, each in given.tensors.items()
    }
    return {**memory, **given.scales}
