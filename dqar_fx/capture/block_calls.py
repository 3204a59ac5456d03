"""Which modules a model calls in one call of it, and with what: looked at, not traced.

The model's own forward runs once, on a fork that is thrown away: with copies of the inputs and
of the buffers, and with the state of the random generators put back, so that nothing of the
model or of its caller is changed. Every call of a module inside is recorded.
"""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dqar_fx.passes.support.attention_spellings import ATTENTION_NAMES

from .capture import fork_model
from .inputs import find_devices
from .offloaded import is_offloaded
from .patterns import PLAIN, Pattern, pattern_of, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

OF_ATTENTION = ("softmax", *ATTENTION_NAMES)
"""Parts of the names of operators of which attention consists."""


@dataclass(eq=False)
class ModuleCall:
    """One call of a module, with the calls inside of it.

    Attributes:
        path: The module's path.
        given: What it was called with: ``(args, kwargs)``.
        casts: Devices for which autocast is on, and what it casts to.
        inside: Calls of other modules in it, in order.
        has_attention: Whether an operator of attention ran in it.
    """

    path: str
    given: Pattern
    casts: tuple[tuple[str, torch.dtype], ...]
    inside: list[ModuleCall] = field(default_factory=list)
    has_attention: bool = False

    @classmethod
    def of(cls, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """Record a call."""
        given = pattern_of((args, kwargs))
        return cls(path, given, casts_on(find_devices(tensors_of(given))))


def casts_on(devices: Iterable[str]) -> tuple[tuple[str, torch.dtype], ...]:
    """Those types of devices for which autocast is on, and what it casts to."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in devices
        if torch.is_autocast_enabled(device)
    )


@dataclass(frozen=True)
class Recording:
    """One call of a model.

    Attributes:
        root: The call, with those inside of it.
        result: What it returned.
        out_spec: How leaves become what it returned.
    """

    root: ModuleCall
    result: Pattern
    out_spec: pytree.TreeSpec


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records calls of modules, and in which of them operators of attention run."""

    def __init__(self, root: ModuleCall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._open = [root]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and mark the calls around it if it is one of attention."""
        name = str(func).lower()
        if any(each in name for each in OF_ATTENTION):
            for call in self._open:
                call.has_attention = True
        return func(*args, **(kwargs or {}))

    def watch(self, model: nn.Module) -> None:
        """Let all modules inside of a model, which is changed, tell of their calls."""
        for path, module in model.named_modules():
            if path:
                module.forward = self._mediate(path, module.forward)

    def _mediate(self, path: str, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = ModuleCall.of(path, args, kwargs)
            self._open[-1].inside.append(call)
            self._open.append(call)
            try:
                return run(*args, **kwargs)
            finally:
                self._open.pop()

        return forward


def record_calls(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
    """Run a model once, which stays as it is, and record the calls inside of it."""
    own, offloaded = fork_model(model), is_offloaded(model)
    for module in own.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and offloaded:
                buffer.data = copy_tensor(buffer)  # which its hooks know
            elif buffer is not None:
                module._buffers[name] = copy_tensor(buffer)
    args, kwargs = copy_inputs((args, kwargs))
    recorder = Recorder(root := ModuleCall.of("", args, kwargs))
    recorder.watch(own)
    with torch.no_grad(), same_random_numbers(own), recorder:
        result = own(*args, **kwargs)
    return Recording(root, pattern_of(result), pytree.tree_structure(result))


@contextmanager
def same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Draw random numbers inside that are drawn again afterwards."""
    devices = {parameter.device for parameter in model.parameters()}
    kind = next(iter(sorted({each.type for each in devices} - {"cpu", "meta"})), "cuda")
    used = [device for device in devices if device.type == kind]
    with torch.random.fork_rng(devices=used, device_type=kind):
        yield


def copy_inputs(inputs: Any) -> Any:
    """Inputs that may be written to: tensors with memory of their own, copies of objects."""
    copies: dict[int, Any] = {}

    def own(leaf: Any) -> Any:
        if id(leaf) not in copies:
            copies[id(leaf)] = copy_leaf(leaf)
        return copies[id(leaf)]

    return pytree.tree_map(own, inputs)


def copy_leaf(leaf: Any) -> Any:
    """A copy of a leaf; the leaf itself if it cannot be copied."""
    if isinstance(leaf, torch.Tensor):
        return copy_tensor(leaf)
    if isinstance(leaf, PLAIN):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # whatever a class raises there, it says that it has no copies
        return leaf


def copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor with its strides, those of views included."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return tensor.detach().clone()
    memory = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
    copied = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copied.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
