"""The parameters of a transformed model: shared, moved, copied, released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from dqar_fx.capture.adapters import (
    LOOKING,
    find_scaled_argument,
    one_at_a_time,
    refuse_unmerging,
    unmerge_disabled,
)
from dqar_fx.capture.compiled import find_original
from dqar_fx.capture.model_state import ModelState, describe_weights
from dqar_fx.capture.offloaded import describe_offload, find_first_device, is_offloaded
from dqar_fx.capture.patched import refuse_hooks, refuse_patches, refuse_taking
from dqar_fx.capture.quantised import refuse_classes
from dqar_fx.capture.shared_tensors import SharedTensors, once_per_memory
from dqar_fx.conditioning.release import Residence
from dqar_fx.errors import DqarError

from .binding import take_scale
from .wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from contextlib import AbstractContextManager

    from torch import nn


@dataclass(frozen=True)
class HandedOut:
    """What a fork was when it was handed out.

    Attributes:
        state: The number of its latest state; None before the first.
        weights: What `describe_weights` gave.
        groups: Names of those that are equal, which showed one memory.
    """

    state: int | None
    weights: Mapping[str, Hashable]
    groups: Mapping[tuple[str, ...], int]


class ParameterWrapper(Wrapper):
    """A wrapper that owns parameters, which share their storage with the original's.

    Args:
        model: The original; it is not modified.
        residence: Where the conditioning's parameters are; None to leave them.
    """

    _offloads: bool
    _residence: Residence
    _model_state: ModelState
    _shared_tensors: SharedTensors
    _handed_out: HandedOut | None
    _factor: float
    _scaled_argument: str | None
    _turns: AbstractContextManager[object]

    def __init__(self, model: nn.Module, residence: Residence | None) -> None:
        refuse_patches(find_original(model))
        refuse_classes(find_original(model))
        refuse_unmerging(find_original(model))
        super().__init__(model)
        self._offloads = is_offloaded(self.model)
        self._residence = Residence() if residence is None else residence
        self._residence.add_model(self.model)
        self._model_state = ModelState(self.model)
        self._shared_tensors = SharedTensors(find_original(model))
        self._handed_out = None
        self._weights: Mapping[str, Hashable] | None = None
        self._factor = 1.0
        self._look_for_adapters()

    def _look_for_adapters(self) -> None:
        """Find out how scales of adapters are given, and whether threads wait in turn."""
        self._scaled_argument = find_scaled_argument(self.model)
        self._turns = LOOKING if self._offloads else one_at_a_time(self.model)

    if TYPE_CHECKING:

        def _forget_programs(self) -> None:
            """Capture anew, as a subclass does it."""

        def _follow_weights(self, factor: float | None = None) -> None:
            """Let graphs take weights anew, and scales, times a factor if one is given."""

    @torch.inference_mode(mode=False)  # or the graphs could not be used outside of it
    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert the parameters; graphs are captured anew for another dtype.

        Those of a device are kept, without weights, for when the model comes back to it, as
        it does in each request where a pipeline offloads its models. Tensors that are one
        stay one, and what was released comes back.

        Raises:
            DqarError: Weights come and go by hooks.
        """
        if not self._changes(fn):
            return self
        if self._offloads:
            raise DqarError(
                f"{describe_offload(self.model)}, and a denoiser of them is not moved or "
                "converted. Do so before: model.to(dtype), then offload, then transform"
            )
        self._residence.bring_back()
        self._take_back()  # what is looked through first, such as for hooks, is shared again
        before = self._placement()
        self.model._apply(once_per_memory(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        if before != self._placement():
            self._model_state.look_again()
            self._residence.forget_saved()
            is_converted = [dtype for dtype, _ in before] != [
                dtype for dtype, _ in self._placement()
            ]
            if is_converted:
                self._forget_programs()
            else:
                self._leave_programs()
        return self

    def _leave_programs(self) -> None:
        """Hold no weights of the device that the model has left."""
        self._forget_programs()

    # ---- what may change -----------------------------------------------------------------

    def _hand_out(self) -> None:
        """Let the fork be changed, with all its weights, each in memory of its own."""
        if self._handed_out is not None:
            return
        if self._residence.place != "drop":
            self._residence.bring_back()
        groups = self._shared_tensors.untie(self.model)
        weights = describe_weights(self.model)
        self._handed_out = HandedOut(self._model_state.latest, weights, groups)

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

        Graphs stay for the states in which they were captured, with the weights that are
        there now. Where other tensors are equal than before, all are captured anew.

        Raises:
            DqarError: A library has put hooks around modules of it.
        """
        if self._handed_out is None:
            return
        refuse_hooks(self.model, moving=self._offloads)
        refuse_taking(self)
        if self._offloads and not is_offloaded(self.model):
            self._offloads = False  # all hooks were taken away
            self._forget_programs()
        before, self._handed_out = self._handed_out, None
        unmerge_disabled(self.model)
        for module in self.model.modules():
            module.training = False
        self._model_state.look_again()
        for parameter in () if self._offloads else self.model.parameters():
            parameter.requires_grad = False
        is_written = before.weights != describe_weights(self.model)
        if before.groups:
            self._shared_tensors.tie(self.model)
        if is_written:
            self._residence.forget_saved()
        if self._shared_tensors.groups != before.groups:
            self._forget_programs()
        elif is_written or before.state not in (None, self._model_state.number):
            self._follow_weights()
        self._look_for_adapters()

    def _notice_writes(self) -> bool:
        """Follow what was done to weights past the denoiser, as a run begins.

        Returns:
            Whether anything was done.

        Raises:
            DqarError: The model's weights were written to, but some are away.
        """
        is_away = self._residence.is_away
        is_shown = not is_away and self._shared_tensors.follow(self.model)
        self._refuse_writes()
        if is_away:
            return False
        weights = describe_weights(self.model)
        before, self._weights = self._weights, weights
        is_written = is_shown or before not in (None, weights)
        if is_written:
            self._residence.forget_saved()
            self._follow_weights()
        return is_written

    def _refuse_writes(self) -> None:
        """Raise for writes to the original where weights that were released do not follow.

        Raises:
            DqarError: There were some.
        """
        place, original = self._residence.place, self._shared_tensors.original
        if place is None or original is None or self._residence.moves(original):
            return
        theirs = self._shared_tensors.describe_originals()
        before = self._residence.originals or theirs
        # the original may be moved or converted, which a denoiser does not follow
        written = {key[0] for key, was in before.items() if theirs.get(key, was) != was}
        if not self._residence.is_away:  # those that came back have memory of their own
            written &= self._shared_tensors.find_apart(self.model)
        if written:
            raise DqarError(
                f"{min(written)} was written to while weights of the conditioning are "
                f"{'dropped' if place == 'drop' else 'released'}, so that new weights would "
                "be mixed with old ones. Transform the model anew; or leave release= out "
                "where weights change between runs"
            )
        self._residence.originals = theirs

    @torch.inference_mode(mode=False)  # as for a move
    def _call_method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the fork, which needs all its weights.

        Raises:
            DqarError: They were dropped; the method puts hooks around modules of it; or it
                replaces weights that hooks move.
        """
        if self._offloads and kwargs.get("assign") and method.__name__ == "load_state_dict":
            raise DqarError(
                f"{describe_offload(self.model)}, and load_state_dict(assign=True) of a "
                "denoiser would replace them for the denoiser alone. Load them into the model "
                "that it was made of, or without assign=True"
            )
        self._residence.bring_back()
        try:
            return super()._call_method(method, *args, **kwargs)
        finally:
            self._model_state.look_again()
            self._follow_weights()  # what writes through .data is not counted
            refuse_hooks(self.model, moving=self._offloads)

    def _bind_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        self._take_back()
        args, kwargs, as_tuple = super()._bind_call(args, kwargs)
        kwargs, factor = take_scale(kwargs, self._scaled_argument)
        if factor != self._factor:
            self._factor = factor
            self._follow_weights(factor)
        return args, kwargs, as_tuple

    def _changes(self, fn: Callable[..., Any]) -> bool:
        """Whether a function of tensors may change them; known only of what is away."""
        if self._residence.place != "drop" and not self._offloads:
            return True
        before = torch.empty(0, dtype=self.dtype, device=self.device)
        after = fn(before)
        return (after.dtype, after.device) != (before.dtype, before.device)

    @property
    def device(self) -> torch.device:
        """The device of the parameters; where hooks bring them if these come and go."""
        found = find_first_device(self.model) if self._offloads else None
        return found or super().device

    def _placement(self) -> list[tuple[torch.dtype, torch.device]]:
        """List the dtype and device of each parameter and buffer."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return [(tensor.dtype, tensor.device) for tensor in tensors]

    def __getstate__(self) -> dict[str, Any]:
        """Copy the state with parameters that were released brought back.

        Raises:
            DqarError: Weights come and go by hooks, which are of one model.
        """
        if self._offloads:
            raise DqarError(
                f"{describe_offload(self.model)}, which are of this model alone. Copy or "
                "store it before it is offloaded"
            )
        self._residence.bring_back()
        self._take_back()
        return {**self.__dict__, "_factor": 1.0, "_turns": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take care of the copy's own parameters."""
        super().__setstate__(state)
        self._residence.add_model(self.model)
        self._look_for_adapters()

    @property
    def residence(self) -> Residence:
        """Where the parameters of the conditioning are."""
        return self._residence

    @property
    def released_bytes(self) -> int:
        """Bytes of parameters that are away from their device now."""
        return self._residence.released_bytes
