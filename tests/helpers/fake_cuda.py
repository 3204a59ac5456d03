"""A CUDA device without one: tensors that have a place and no values.

Whatever reads a value on the host raises, as a wait for the device would be.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from torch import nn

aten = torch.ops.aten


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors that are made while inside may be on such a device."""
    with FakeTensorMode(allow_non_fake_inputs=True), WithoutGuards():
        yield


def move_to_fake_cuda(model: nn.Module) -> None:
    """Put parameters and buffers on such a device, while inside of `fake_cuda`."""
    for parent in model.modules():
        for key, value in list(parent._parameters.items()):
            if value is not None:
                fake = torch.empty(value.shape, device="cuda")
                parent._parameters[key] = torch.nn.Parameter(fake, requires_grad=False)
        for key, value in list(parent._buffers.items()):
            if value is not None:
                parent._buffers[key] = torch.empty(
                    value.shape, dtype=value.dtype, device="cuda"
                )


def allow_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the question that writes to the device to see whether it can."""
    module: Any = import_module("dqar_fx.builder.builder")
    monkeypatch.setattr(module, "refuse_format", lambda *_: None)


class WithoutGuards(TorchFunctionMode):
    """Indexing and copying without a device guard, which a build without CUDA lacks."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            return aten.copy_.default(*args)
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        dim = 0
        for each in index if isinstance(index, tuple) else (index,):
            if each is None:
                tensor, dim = tensor.unsqueeze(dim), dim + 1
            elif isinstance(each, slice):
                tensor = aten.slice.Tensor(tensor, dim, each.start, each.stop, each.step or 1)
                dim += 1
            else:
                tensor = tensor.select(dim, each)
        return tensor
