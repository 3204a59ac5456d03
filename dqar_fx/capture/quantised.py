"""Weights of quantised classes, while a model is traced.

`torch.export` knows tensors, not their classes. A weight that consists of others, such as
torchao's, is laid open: the modules of the copy that is traced hold its inner tensors, under
the names that they have in the weight, and put it together whenever it is asked for. So its
own operators are traced, on parameters that share memory with the model's:

    to_q.weight : Int8Tensor[60, 60]
 -> to_q.weight_parts.qdata : i8[60, 60], to_q.weight_parts.scale : f32[60, 1]

A weight of diffusers' GGUF class is a tensor of bytes, and says how these are packed: so do
the bytes that are traced, in its place. Other classes would be lost, and are refused.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.inner_tensors import as_plain, inner_tensors

from .equal_modules import REGISTERED

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = "_parts"
"""What the name of a tensor that consists of others has behind it, where these are held."""
PRINTS = "extra_repr"
"""What torchao puts into a module that it quantises, to say so: a bound partial."""
PLAIN_FUNCTIONS = (nn.Parameter.__torch_function__, torch.Tensor.__torch_function__.__func__)  # type: ignore[attr-defined]  # a class method
"""What functions of torch do with tensors of a class that adds nothing."""


class InnerTensors(nn.Module):
    """Stands where a module had a tensor that consists of others, and holds these.

    Args:
        tensor: The tensor.
    """

    def __init__(self, tensor: Any) -> None:
        super().__init__()
        self.kind = type(tensor)
        self.names, self.context = tensor.__tensor_flatten__()
        self.layout = tensor.size(), tensor.stride()
        for name in self.names:
            inner = getattr(tensor, name)
            if is_traceable_wrapper_subclass(inner):
                self.add_module(name, InnerTensors(inner))
            else:
                self.register_parameter(name, nn.Parameter(inner, requires_grad=False))

    def whole(self) -> torch.Tensor:
        """The tensor, of what stands for its inner tensors now."""
        held = {name: getattr(self, name) for name in self.names}
        inner = {
            name: each.whole() if isinstance(each, InnerTensors) else each
            for name, each in held.items()
        }
        made: torch.Tensor = self.kind.__tensor_unflatten__(inner, self.context, *self.layout)
        return made


class PackedBytes(nn.Module):
    """Stands where a module had a tensor of diffusers' GGUF class, and holds its bytes.

    Args:
        tensor: The tensor.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.said = vars(tensor)
        self.packed = nn.Parameter(as_plain(tensor), requires_grad=False)

    def whole(self) -> torch.Tensor:
        """What stands for the bytes now, which says what the tensor says."""
        tensor: Any = self.packed
        vars(tensor).update(self.said, as_tensor=lambda: tensor)
        return self.packed


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of diffusers' GGUF class: bytes, and how they are packed."""
    return hasattr(tensor, "quant_type") and hasattr(tensor, "as_tensor")


def is_opened(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a class of its own that can be laid open."""
    return is_traceable_wrapper_subclass(tensor) or is_packed(tensor)


def stand_in(tensor: torch.Tensor) -> InnerTensors | PackedBytes:
    """What a module holds in the place of a tensor with a class of its own."""
    return PackedBytes(tensor) if is_packed(tensor) else InnerTensors(tensor)


@cache
def class_with(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A class of modules that put together some of their tensors."""

    def put_together(module: Any, *, name: str) -> Any:
        return getattr(module, name + PARTS).whole()

    body: dict[str, Any] = {name: property(partial(put_together, name=name)) for name in names}
    told = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), body | told)


def lay_open(model: nn.Module) -> nn.Module:
    """Change a model so that its tensors have no classes of their own; the model."""
    known: dict[int, tuple[Any, Any]] = {}  # with the tensor, so that its number is its own
    for module in list(model.modules()):
        held = [(name, each) for of in REGISTERED for name, each in vars(module)[of].items()]
        opened = [(name, each) for name, each in held if each is not None and is_opened(each)]
        for name, tensor in opened:
            if id(tensor) not in known:
                known[id(tensor)] = tensor, stand_in(tensor)
            delattr(module, name)
            setattr(module, name + PARTS, known[id(tensor)][1])
        if opened:
            kind: Any = type(module)
            module.__class__ = class_with(kind, tuple(name for name, _ in opened))
            vars(module).pop(PRINTS, None)  # how it is printed would tell blocks apart
    return model


def open_tensor(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The ordinary tensors of a tensor by the names that they have where it is laid open."""
    if is_packed(tensor):
        yield f"{name}{PARTS}.packed", as_plain(tensor)
        return
    for inner, each in inner_tensors(tensor):
        yield f"{name}{PARTS}{inner}" if inner else name, each


def refuse_classes(model: nn.Module) -> None:
    """Raise if a tensor of a model is of a class that a graph would lose.

    Raises:
        DqarError: It has attributes or operators of its own, which tracing does not see.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        kind = type(tensor)
        if kind in (torch.Tensor, nn.Parameter, FakeTensor) or is_opened(tensor):
            continue
        function = kind.__torch_function__
        if not vars(tensor) and getattr(function, "__func__", function) in PLAIN_FUNCTIONS:
            continue
        raise DqarError(
            f"{name} is a {kind.__name__} ({kind.__module__}), a class of weights that no "
            "graph can hold: its values would be taken for plain numbers. Found a tensor with "
            "memory and attributes of its own; expected plain weights, ones that torchao "
            "quantised (quantize_, TorchAoConfig), or a GGUF file's. Quantise the model by "
            "one of these, or call it untransformed"
        )


def copy_packed(model: nn.Module) -> dict[int, torch.Tensor]:
    """Copies of a model's GGUF tensors by their numbers: their class cannot make any."""
    return {
        id(tensor): with_class_of(tensor, as_plain(tensor).clone())
        for tensor in model.parameters()
        if is_packed(tensor)
    }


def with_class_of(tensor: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """A tensor over the memory of a plain one, with the class and attributes of another."""
    made: torch.Tensor = torch.Tensor._make_subclass(type(tensor), plain)
    vars(made).update(vars(tensor))
    return made


def refuse_to_pickle(model: nn.Module) -> None:
    """Raise if a quantised model cannot be pickled, for what its library has put there.

    Raises:
        DqarError: GGUF's class of tensors cannot, nor what torchao lets modules print.
    """
    printed = (f"{path}.{PRINTS}" for path, m in model.named_modules() if PRINTS in vars(m))
    packed = (name for name, tensor in model.named_parameters() if is_packed(tensor))
    for name in (*packed, *printed):
        raise DqarError(
            f"{name} cannot be pickled, nor can the quantised model. Quantise or load the "
            "model where the denoiser is needed, and transform it there; in this process, "
            "copy.deepcopy(denoiser) is a copy"
        )
