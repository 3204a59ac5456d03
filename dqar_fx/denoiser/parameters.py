"""The parameters of a transformed model: shared, moved, copied, released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from dqar_fx.capture.model_state import ModelState, memory_by_name
from dqar_fx.capture.quantised import refuse_classes
from dqar_fx.capture.shared_tensors import SharedTensors, once_per_memory
from dqar_fx.conditioning.release import Residence

from .wrapper import Wrapper, find_original, refuse_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from torch import nn


@dataclass(frozen=True)
class HandedOut:
    """What a fork was when it was handed out.

    Attributes:
        state: The number of its latest state; None before the first.
        memory: Of its tensors, by name.
        groups: Names of those that are equal, which showed one memory.
    """

    state: int | None
    memory: Mapping[str, Hashable]
    groups: Mapping[tuple[str, ...], int]


class ParameterWrapper(Wrapper):
    """A wrapper that owns parameters, which share their storage with the original's.

    Args:
        model: The original; it is not modified.
        residence: Where the conditioning's parameters are; None to leave them.
    """

    _residence: Residence
    _model_state: ModelState
    _shared_tensors: SharedTensors
    _handed_out: HandedOut | None

    def __init__(self, model: nn.Module, residence: Residence | None) -> None:
        refuse_hooks(find_original(model))
        refuse_classes(find_original(model))
        super().__init__(model)
        self._residence = Residence() if residence is None else residence
        self._residence.add_model(self.model)
        self._model_state = ModelState(self.model)
        self._shared_tensors = SharedTensors(find_original(model))
        self._handed_out = None

    if TYPE_CHECKING:

        def _forget_programs(self) -> None:
            """Capture anew, as a subclass does it."""

        def _forget_conditioning(self) -> None:
            """Evaluate anew what was evaluated of weights, as a subclass does it."""

    @torch.inference_mode(mode=False)  # or the graphs could not be used outside of it
    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert the parameters; graphs are captured anew where that changed them.

        Tensors that are one stay one, and what was released comes back.
        """
        if not self._changes(fn):
            return self
        self._residence.bring_back()
        self._take_back()  # what is looked through first, such as for hooks, is shared again
        before = self._placement()
        self.model._apply(once_per_memory(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        if before != self._placement():
            self._model_state.look_again()
            self._residence.forget_saved()
            self._forget_programs()
        return self

    # ---- what may change -----------------------------------------------------------------

    def _hand_out(self) -> None:
        """Let the fork be changed, with all its weights, each in memory of its own."""
        if self._handed_out is not None:
            return
        if self._residence.place != "drop":
            self._residence.bring_back()
        groups = self._shared_tensors.untie(self.model)
        memory = memory_by_name(self.model)
        self._handed_out = HandedOut(self._model_state.latest, memory, groups)

    def lend_model(self) -> nn.Module:
        """The fork, to be read or changed, with all its weights in memory of their own.

        Raises:
            DqarError: Some were dropped.
        """
        self._residence.bring_back()
        self._hand_out()
        return self.model

    def _take_back(self) -> None:
        """Look at the fork once after it was handed out, and follow what was changed.

        Graphs stay for the states in which they were captured. Where tensors were written to,
        replaced or taken away, all are captured anew.

        Raises:
            DqarError: A library has put hooks around modules of it.
        """
        if self._handed_out is None:
            return
        refuse_hooks(self.model)
        before, self._handed_out = self._handed_out, None
        for module in self.model.modules():
            module.training = False
        self._model_state.look_again()
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        is_written = not before.memory.items() <= memory_by_name(self.model).items()
        if before.groups:
            self._shared_tensors.tie(self.model)
        if is_written or self._shared_tensors.groups != before.groups:
            self._residence.forget_saved()
            self._forget_programs()
        elif before.state not in (None, self._model_state.number):
            self._forget_conditioning()

    @torch.inference_mode(mode=False)  # as for a move
    def _call_method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the fork, which needs all its weights.

        Raises:
            DqarError: They were dropped; or the method puts hooks around modules of it.
        """
        self._residence.bring_back()
        try:
            return super()._call_method(method, *args, **kwargs)
        finally:
            self._model_state.look_again()
            self._forget_conditioning()  # what writes through .data is not counted
            refuse_hooks(self.model)

    def _bind_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        self._take_back()
        return super()._bind_call(args, kwargs)

    def _changes(self, fn: Callable[..., Any]) -> bool:
        """Whether a function of tensors may change them; known only of what was dropped."""
        if self._residence.place != "drop":
            return True
        before = torch.empty(0, dtype=self.dtype, device=self.device)
        after = fn(before)
        return (after.dtype, after.device) != (before.dtype, before.device)

    def _placement(self) -> list[tuple[torch.dtype, torch.device]]:
        """List the dtype and device of each parameter and buffer."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return [(tensor.dtype, tensor.device) for tensor in tensors]

    def __getstate__(self) -> dict[str, Any]:
        """Copy the state with parameters that were released brought back."""
        self._residence.bring_back()
        self._take_back()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take care of the copy's own parameters."""
        super().__setstate__(state)
        self._residence.add_model(self.model)

    @property
    def residence(self) -> Residence:
        """Where the parameters of the conditioning are."""
        return self._residence

    @property
    def released_bytes(self) -> int:
        """Bytes of parameters that are away from their device now."""
        return self._residence.released_bytes
