"""What other libraries put around a model's modules: told by name, and refused.

A denoiser runs a fork of its model. A hook around an inner module moves or replaces what was
captured. A forward that a library has put in the place of a module's own calls the module that
it was made for, not the fork's; or it keeps something from one call to the next.
"""

from __future__ import annotations

import dis
import inspect
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

from dqar_fx.errors import DqarError

from .compiled import find_original, find_plain
from .offloaded import find_hooks, has_moving, is_offloaded, takes_away

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CACHES = {
    "cache_dit": "cache-dit",
    "para_attn": "ParaAttention",
    "teacache": "TeaCache",
    "xfuser": "xDiT",
}
"""What other caches are called, by a part of the names in their code."""
ADVICE = {
    "AlignDevices": "It is of sequential offload or of a device_map: put that on before "
    "transform, and capture='blocks'. Or undo it by "
    "pipe.remove_all_hooks() or pipe.reset_device_map(), of a model alone by "
    "accelerate.hooks.remove_hook_from_module(model, recurse=True); and use "
    "pipe.enable_model_cpu_offload() or transform(..., release='host')",
    "GroupOffload": "Put group offload on before transform, and capture='blocks'. Or load "
    "the model anew, without it; and use pipe.enable_model_cpu_offload() or "
    "transform(..., release='host')",
    "LayerwiseCasting": "Put casting by layer on before transform, and capture='blocks'. Or "
    "load the model anew, and convert all of it, by to(dtype); or quantise it by torchao "
    "(Float8WeightOnlyConfig)",
    "ContextParallel": "Load the model anew, without enable_parallelism()",
}
"""What to do, by the beginning of a hook's class."""
NO_CACHE = (
    "Two caches do not go together: take it away (of diffusers by model.disable_cache()), or "
    "use it without dqar_fx"
)
OWN_FORWARD = "Give it its own forward back, or one that computes by its arguments alone"
ANY_HOOK = "Remove the hooks of inner modules (pipe.remove_all_hooks(), model.disable_cache())"


def refuse_patches(model: nn.Module, *, moving: bool = True) -> None:
    """Raise if a library has put something around a model that is in no capture.

    Args:
        model: The model.
        moving: Whether hooks may be there that bring weights in and take them away.

    Raises:
        DqarError: It has.
    """
    refuse_hooks(model, moving=moving)
    refuse_forwards(model)


# ---- hooks ------------------------------------------------------------------------------


def refuse_hooks(model: nn.Module, *, moving: bool = False) -> None:
    """Raise if a library has put hooks around an inner module, or around what it offloads.

    Args:
        model: The model.
        moving: Whether hooks may be there that bring weights in and take them away.

    Raises:
        DqarError: It has.
    """
    may_move = moving and is_offloaded(model)
    for path, module in model.named_modules():
        for library, hooks in find_hooks(module):
            is_known = library == "accelerate" if not path else False
            if not is_known and not (may_move and has_moving(module)):
                raise DqarError(spell_hook(path, module, library, hooks))
    if not may_move:
        refuse_taking(model)


def refuse_taking(model: nn.Module) -> None:
    """Raise for a hook around a model that takes its weights away between calls.

    Raises:
        DqarError: There is one.
    """
    if takes_away(model):
        library, hooks = next(find_hooks(model))
        raise DqarError(spell_hook("", model, library, hooks))


def spell_hook(path: str, module: nn.Module, library: str, hooks: Sequence[Any]) -> str:
    """Say which hooks are in the way."""
    names = dict.fromkeys(type(hook).__name__ for hook in hooks)
    return (
        f"{path or 'the model'} ({type(module).__name__}) has a hook of {library} "
        f"({', '.join(names)}) around its forward, which would be captured in part. "
        f"{advise(hooks)}"
    )


def advise(hooks: Iterable[Any]) -> str:
    """What to do about hooks."""
    for hook in hooks:
        name = type(hook).__name__
        known = [told for start, told in ADVICE.items() if name.startswith(start)]
        if known or getattr(hook, "_is_stateful", False) or "Cache" in name or "FBC" in name:
            return known[0] if known else f"It is another cache's. {NO_CACHE}"
    return ANY_HOOK


def without_hook(fork: nn.Module) -> nn.Module:
    """A fork whose own forward runs without the hook of accelerate that its model has.

    One whose weights come and go part by part keeps it, which may bring some.
    """
    held = {} if is_offloaded(fork) else vars(fork)
    if held.pop("_hf_hook", None) is not None:
        held.pop("forward", None)
        plain = find_plain(held.pop("_old_forward", None))
        own = inspect.getattr_static(type(fork), "forward")
        if inspect.ismethod(plain) and plain.__func__ not in (own, *vars(nn.Module).values()):
            fork.forward = MethodType(plain.__func__, fork)
    return fork


# ---- forwards ---------------------------------------------------------------------------


def refuse_forwards(model: nn.Module) -> None:
    """Raise for a forward in the place of a module's own that a fork cannot have.

    Raises:
        DqarError: There is one.
    """
    for path, module in model.named_modules():
        if find_original(module) is not module:
            continue
        kind, held = type(module), vars(module)
        forward = held.get("_old_forward" if "_hf_hook" in held else "forward")
        found = list(links(forward)) if path else [*links(forward), *links_of(kind)]
        for function in found:
            why = "" if is_written_in(kind, function) else tell_state(function)
            if why:
                raise DqarError(spell_patch(path, module, function, why))


def refuse_cache(model: nn.Module, forward: Any) -> None:
    """Raise if a forward that is put around a denoiser is another cache's.

    Raises:
        DqarError: It is one that is known.
    """
    for function in links(forward):
        if name_cache(function):
            raise DqarError(spell_patch("", model, function, "which keeps outputs by itself"))


def links_of(kind: type) -> Iterator[FunctionType]:
    """The functions that the forward of a class is and wraps, outermost first."""
    return links(inspect.getattr_static(kind, "forward", None))


def is_written_in(kind: type, function: FunctionType) -> bool:
    """Whether a function was written in a class or in what that inherits from."""
    return any(
        function.__globals__.get("__name__") == each.__module__
        and function.__code__.co_qualname.startswith(f"{each.__qualname__}.")
        for each in kind.__mro__
    )


def links(forward: Any) -> Iterator[FunctionType]:
    """The functions that a forward is and wraps, outermost first."""
    forward = find_plain(forward)
    if isinstance(forward, partial):
        yield from links(forward.func)
    forward = getattr(forward, "__func__", forward)
    if isinstance(forward, FunctionType):
        yield forward
    if hasattr(forward, "__wrapped__"):
        yield from links(forward.__wrapped__)


def tell_state(function: FunctionType) -> str:
    """What a function has that is in no capture, in words; empty for nothing."""
    written = dict.fromkeys(written_names(function.__code__))
    if written:
        return f"which writes to attributes ({', '.join(written)}) in a call, for the next"
    if any(is_of_module(value) for value in closed_over(function)):
        return "which calls the model that it was made for, not a copy of it"
    return ""


def written_names(code: CodeType) -> Iterator[str]:
    """The names of the attributes that a function writes to."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield str(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from written_names(inner)


def closed_over(function: FunctionType) -> Iterator[Any]:
    """What a function has of the functions around it."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def is_of_module(value: Any) -> bool:
    """Whether a value is a module or a method of one."""
    value = value.func if isinstance(value, partial) else value
    return isinstance(getattr(value, "__self__", value), nn.Module)


def name_cache(function: FunctionType) -> str:
    """The name of the cache that a function is of; empty for none that is known."""
    code = function.__code__
    words = (function.__globals__.get("__name__") or "", code.co_qualname, *code.co_names)
    text = " ".join(words).lower()
    return next((name for part, name in CACHES.items() if part in text), "")


def spell_patch(path: str, module: nn.Module, function: FunctionType, why: str) -> str:
    """Say which forward was replaced by what."""
    code, cache = function.__code__, name_cache(function)
    place = f"{path} ({type(module).__name__})" if path else type(module).__name__
    by = f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
    by += f" of {cache}" if cache else ""
    return (
        f"the forward of {place} was replaced by {by}, {why}, and would "
        f"not be captured as it runs. {NO_CACHE if cache else OWN_FORWARD}"
    )
