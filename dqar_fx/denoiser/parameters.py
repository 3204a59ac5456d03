"""The parameters of a transformed model: shared, moved, copied, released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from dqar_fx.capture.model_state import ModelState, memory_by_name
from dqar_fx.capture.shared_tensors import once_per_memory
from dqar_fx.conditioning.release import Residence
from dqar_fx.errors import DqarError

from .wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class ParameterWrapper(Wrapper):
    """A wrapper that owns parameters, which share their storage with the original's.

    Args:
        model: The original; it is not modified.
        residence: Where the conditioning's parameters are; None to leave them.
    """

    def __init__(self, model: nn.Module, residence: Residence | None) -> None:
        super().__init__(model)
        self._residence = Residence() if residence is None else residence
        self._residence.add_model(self.model)
        self._model_state = ModelState(self.model)

    if TYPE_CHECKING:

        def _forget_programs(self) -> None:
            """Capture anew, as a subclass does it."""

    @torch.inference_mode(mode=False)  # or the graphs could not be used outside of it
    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert the parameters; graphs are captured anew where that changed them.

        Tensors that are one stay one, and what was released comes back.
        """
        if not self._changes(fn):
            return self
        self._residence.bring_back()
        before = self._placement()
        super()._apply(once_per_memory(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        if before != self._placement():
            self._model_state.look_again()
            self._residence.forget_saved()
            self._forget_programs()
        return self

    @torch.inference_mode(mode=False)  # as for a move
    def _call_method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the fork; graphs stay for the states in which they were captured.

        Where the method wrote to a tensor or took one away, all are captured anew.
        """
        self._residence.bring_back()
        before = memory_by_name(self.model).items()
        try:
            return super()._call_method(method, *args, **kwargs)
        finally:
            self._model_state.look_again()
            if not before <= memory_by_name(self.model).items():
                self._residence.forget_saved()
                self._forget_programs()

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

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of the denoiser's fork of the model, with what was released."""
        self._residence.bring_back()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, since the parameters are the original's.

        Raises:
            DqarError: Always.
        """
        raise DqarError(
            "a denoiser shares its parameters with the model it was made of. Load the state "
            "into that model, then call denoiser.reset()"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copy the state with parameters that were released brought back."""
        self._residence.bring_back()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take care of the copy's own parameters."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._residence.add_model(self.model)

    @property
    def residence(self) -> Residence:
        """Where the parameters of the conditioning are."""
        return self._residence

    @property
    def released_bytes(self) -> int:
        """Bytes of parameters that are away from their device now."""
        return self._residence.released_bytes
