"""Modules that somebody has given to ``torch.compile``: looked through, to what it compiles.

``torch.compile(module)`` is a module around another, ``torch.compile(module.forward)`` a
function around a method. ``module.compile()`` needs nothing: copies of a module leave it out.
Code that is compiled around a denoiser does not look into it.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn
from torch._C._dynamo import eval_frame

if TYPE_CHECKING:
    from collections.abc import Callable

WRAPPED = "_orig_mod"
"""Where a compiled module has the module that it compiles."""
COMPILED = "_torchdynamo_orig_callable"
"""Where a compiled function has the function that it compiles."""

WHY_OPAQUE = (
    "a denoiser of dqar_fx compiles by itself, as transform(..., compile=...) or "
    "denoiser.compile(...) say, and is no part of another graph. Leave fullgraph=True out of "
    "what is compiled around it"
)
"""Told by Dynamo, too, where a graph must not end before a denoiser."""
Function = TypeVar("Function", bound="Callable[..., Any]")


def find_original(model: nn.Module) -> nn.Module:
    """The module itself, where ``torch.compile`` wraps it."""
    return model._modules.get(WRAPPED) or model


def find_plain(function: Any) -> Any:
    """The function itself, where ``torch.compile`` wraps it."""
    while hasattr(function, COMPILED):
        function = getattr(function, COMPILED)
    return function


def opaque(function: Function) -> Function:
    """A function that Dynamo does not trace, nor what it calls."""
    made = torch.compiler.disable(function, reason=WHY_OPAQUE)  # type: ignore[no-untyped-call]  # torch leaves it so
    return cast("Function", made)


def opaque_itself(function: Function) -> Function:
    """A function that Dynamo does not trace; what it calls sees which code is compiled."""
    made = torch.compiler.disable(function, recursive=False, reason=WHY_OPAQUE)  # type: ignore[no-untyped-call]  # torch leaves it so
    return cast("Function", made)


def must_have_no_break() -> bool:
    """Whether what calls was compiled with ``fullgraph=True``, and no graph of it ran yet."""
    exchange = getattr(eval_frame, "set_fullgraph_compiled_frame_count", None)
    if exchange is None:  # before torch 2.13 nothing tells
        return False
    number: int = exchange(-1)
    exchange(number)
    return number == 0


def copy_plain(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy in which nothing is compiled; ``memo`` is as for `copy.deepcopy`."""
    modules = list(model.modules())
    for module in reversed(modules):  # inner ones first
        if find_original(module) is not module:
            memo[id(module)] = copy.deepcopy(find_original(module), memo)
    memo.update(
        (id(held), OrderedDict[Any, Any]())
        for module in modules
        for held in vars(module).values()
        if type(held) is OrderedDict and not held  # most are, and take most of the time
    )
    copied: nn.Module = copy.deepcopy(model, memo)
    for module in copied.modules():
        plain = find_plain(forward := vars(module).get("forward"))
        if plain is not forward and inspect.ismethod(plain):  # which is of the model itself
            module.forward = MethodType(plain.__func__, module)
    return copied


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by the names that they have where nothing is compiled."""
    named = model.named_modules(remove_duplicate=False)
    return {plain_name(name): each for name, each in named if find_original(each) is each}


def plain_name(name: str) -> str:
    """The name that a tensor or module has where nothing is compiled."""
    return ".".join(part for part in name.split(".") if part != WRAPPED)
