"""Tensors that a quantised tensor consists of.

A tensor may be one in name only: torchao's hold integers and scales as attributes, and have no
memory of their own. What counts, compares or moves memory looks at those inner tensors, which
are ordinary ones, under the tensor's name and theirs: ``blocks.0.to_q.weight.qdata``.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def inner_tensors(tensor: torch.Tensor, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The ordinary tensors of a tensor, by name; itself if it is one."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from inner_tensors(getattr(tensor, inner), f"{name}.{inner}")


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The ordinary tensors of a module's parameters and buffers, by name."""
    named = chain(module.named_parameters(), module.named_buffers())
    return dict(pair for name, tensor in named for pair in inner_tensors(tensor, name))


def rebuild(tensor: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A tensor like one that consists of others, of what a function makes of these."""
    names, context = tensor.__tensor_flatten__()
    inner = {name: change(getattr(tensor, name)) for name in names}
    made: torch.Tensor = type(tensor).__tensor_unflatten__(
        inner, context, tensor.size(), tensor.stride()
    )
    return made


def as_plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor over the memory of one with memory, without a class of its own."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()
