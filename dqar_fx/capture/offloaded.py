"""Models whose weights hooks bring in, part by part, and take away again.

Sequential offload of accelerate and group offload of diffusers put hooks around inner modules:
before a module's forward its weights come to the device that computes, after it they go. What
stands for such a module runs inside of its hooks, and reads its weights when it is called.

A fork of such a model has hooks of its own, which know its modules. It shares the parameters
themselves, not their memory alone, which is another one each time, and all that hooks know of
weights that are away.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dqar_fx.errors import DqarError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

HOOKED = {"_hf_hook": "accelerate", "_diffusers_hook": "diffusers"}
"""Attributes of modules whose forward a library has replaced by one that calls a hook."""
OF_HOOKS = frozenset({*HOOKED, "_old_forward"})
"""Attributes by which accelerate and diffusers know what they have put around a module."""
MOVING = (
    "AlignDevicesHook",
    "GroupOffloadingHook",
    "LazyPrefetchGroupOffloadingHook",
    "LayerExecutionTrackerHook",
    "LayerwiseCastingHook",
)
"""Classes of hooks that bring weights in and take them away, or watch those that do.

Casting by layer brings weights in in the dtype that computes, and stores them in another.
"""
SHARED = ("weights_map", "tied_params_map", "stream", "_torch_accelerator_module")
"""Attributes of hooks, their groups and settings that all copies share."""
OWN = "diffusers"
"""The library whose hooks give parameters other memory, and not other parameters."""
EXECUTION = "execution_device"
"""Attribute of hooks of accelerate with the device that computes."""
COMPUTE = "compute_dtype"
"""Attribute of hooks that cast, with the dtype that computes."""


def find_hooks(module: nn.Module) -> Iterator[tuple[str, list[Any]]]:
    """The hooks around a module, by library."""
    for attribute, library in HOOKED.items():
        held = vars(module).get(attribute)
        hooks = [] if held is None else list(flatten(held))
        if hooks:
            yield library, hooks


def flatten(held: Any) -> Iterator[Any]:
    """The hooks that a hook or a registry consists of, in the order in which they begin."""
    hooks = getattr(held, "hooks", None)
    if hooks is None:
        yield held
    elif isinstance(hooks, dict):  # of which the last is the outermost
        yield from reversed(hooks.values())
    else:
        for hook in hooks:
            yield from flatten(hook)


def moves_weights(hook: Any) -> bool:
    """Whether a hook is one that brings weights in, and takes them away."""
    return any(kind.__name__ in MOVING for kind in type(hook).__mro__)


def has_moving(module: nn.Module) -> bool:
    """Whether all hooks around a module are such, and there are some."""
    if HOOKED.keys().isdisjoint(vars(module)):  # as of most, and all modules are asked
        return False
    hooks = [hook for _, found in find_hooks(module) for hook in found]
    return bool(hooks) and all(map(moves_weights, hooks))


def is_offloaded(model: nn.Module) -> bool:
    """Whether hooks bring weights of a model in part by part, or take them all away."""
    inner = (module for module in model.modules() if module is not model)
    return any(map(has_moving, inner)) or (has_moving(model) and takes_away(model))


def takes_away(module: nn.Module) -> bool:
    """Whether a hook around a module takes its weights away."""
    hooks = [hook for _, found in find_hooks(module) for hook in found]
    return any(
        hasattr(hook, "group") or getattr(hook, "offload", False) is True for hook in hooks
    ) or casts(module)


def casts(module: nn.Module) -> bool:
    """Whether a hook around a module casts its weights for each call."""
    return any(hasattr(hook, COMPUTE) for _, hooks in find_hooks(module) for hook in hooks)


def moves_in_place(module: nn.Module) -> bool:
    """Whether hooks of diffusers around a module move its weights, or cast them."""
    found = [hook for library, hooks in find_hooks(module) for hook in hooks if library == OWN]
    return any(map(moves_weights, found))


def describe_offload(model: nn.Module) -> str:
    """Who brings weights of a model in, in words; empty for nobody."""
    if not is_offloaded(model):
        return ""
    found = [
        f"{type(hook).__name__} of {library}"
        for module in model.modules()
        for library, hooks in find_hooks(module)
        for hook in hooks
        if takes_away(module) or not takes_away(model)
    ]
    return f"its weights come and go by hooks ({', '.join(dict.fromkeys(found))})"


def list_around(path: str, model: nn.Module) -> Iterator[Any]:
    """The hooks around a module and around what it is part of, the innermost first."""
    while True:
        for _, hooks in find_hooks(model.get_submodule(path)):
            yield from reversed(hooks)
        if not path:
            return
        path = path.rpartition(".")[0]


def find_device(path: str, model: nn.Module) -> torch.device | None:
    """The device to which hooks around a module, or what it is part of, bring weights."""
    for hook in list_around(path, model):
        group = getattr(hook, "group", None)
        found = getattr(group or hook, "onload_device" if group else EXECUTION, None)
        if found is not None:
            return torch.device(found)
    return None


def find_dtype(path: str, model: nn.Module) -> torch.dtype | None:
    """The dtype to which hooks cast floating weights of a module, or what it is part of."""
    found = (getattr(hook, COMPUTE, None) for hook in list_around(path, model))
    return next((each for each in found if each is not None), None)


def find_first_device(model: nn.Module) -> torch.device | None:
    """The device to which the first hook brings weights; None where there is none."""
    found = (find_device(path, model) for path, _ in model.named_modules())
    return next((device for device in found if device is not None), None)


# ---- copies ------------------------------------------------------------------------------


def share_weights(model: nn.Module, memo: dict[int, Any]) -> None:
    """Let a copy that is made with a memo have hooks of its own over the same weights."""
    memo.update({id(parameter): parameter for parameter in model.parameters()})
    for module in model.modules():
        for _, hooks in find_hooks(module):
            for hook in hooks:
                group, config = getattr(hook, "group", None), getattr(hook, "config", None)
                away = getattr(group, "cpu_param_dict", {}).values()
                shared = [getattr(o, n, None) for o in (hook, group, config) for n in SHARED]
                memo.update({id(each): each for each in (*shared, *away)})


def put_hooks_on(fork: nn.Module) -> None:
    """Let modules of a copy call the copied hooks of diffusers, as those of accelerate are."""
    for module in fork.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is None or not registry._fn_refs:
            continue
        forward = registry._fn_refs[0].forward
        for reference in registry._fn_refs:
            reference.forward = forward
            around = functools.partial(call_around, reference, module)
            forward = functools.update_wrapper(around, forward)
        module.forward = forward


def call_around(reference: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a forward inside of one hook of diffusers, as its registry has it."""
    args, kwargs = reference.pre_forward(module, *args, **kwargs)
    return reference.post_forward(module, reference.forward(*args, **kwargs))


def replace_inside(
    module: nn.Module, replace: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace the forward of a module inside of its hooks."""
    held = vars(module)
    registry = held.get("_diffusers_hook")
    if registry is not None and registry._fn_refs:
        first = registry._fn_refs[0]
        first.forward = replace(first.forward)
    elif "_hf_hook" in held:
        module._old_forward = replace(held["_old_forward"])  # type: ignore[assignment]  # a module has any attribute
    else:
        module.forward = replace(module.forward)


def take_hooks_off(fork: nn.Module) -> None:
    """Let modules of a copy run without hooks."""
    for module in fork.modules():
        held = vars(module)
        if OF_HOOKS.isdisjoint(held):
            continue
        found: list[Callable[..., Any]] = []

        def note(
            forward: Callable[..., Any], found: list[Callable[..., Any]] = found
        ) -> Callable[..., Any]:
            found.append(forward)
            return forward

        replace_inside(module, note)
        for name in (*OF_HOOKS, "forward"):
            held.pop(name, None)
        if getattr(found[0], "__func__", None) is not type(module).forward:
            module.forward = found[0]


def without_weights(fork: nn.Module) -> nn.Module:
    """A copy without hooks, whose tensors have no memory, as they are when it computes."""
    mode = FakeTensorMode()
    devices = {path: find_device(path, fork) for path, _ in fork.named_modules()}
    dtypes = {path: find_dtype(path, fork) for path, _ in fork.named_modules()}
    take_hooks_off(fork)
    for path, module in fork.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            cast = dtypes[path] if tensor.is_floating_point() else None
            with mode:
                empty = torch.empty_strided(
                    tensor.shape,
                    tensor.stride(),
                    dtype=cast or tensor.dtype,
                    device=devices[path] or tensor.device,
                )
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
            else:
                module._buffers[name] = empty
    return fork


# ---- weights for the time of a call ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OffloadedTensor:
    """A parameter or buffer that is there only for the time of a call.

    Attributes:
        owner: The module that has it.
        name: Its name there.
        inside: Modules inside of a block whose hooks bring it in, the outer ones first.
    """

    owner: nn.Module
    name: str
    inside: tuple[nn.Module, ...]

    @classmethod
    def find(cls, model: nn.Module, path: str, blocks: Iterable[str]) -> OffloadedTensor:
        """The tensor at a path, which is read inside of the hooks of its block."""
        owner, _, name = path.rpartition(".")
        around = [block for block in blocks if f"{path}.".startswith(f"{block}.")]
        block = max(around, key=len)
        parts = owner.removeprefix(block).removeprefix(".").split(".")
        modules, module = list[nn.Module](), model.get_submodule(block)
        for part in parts if parts != [""] else ():
            module = module.get_submodule(part)
            modules += find_movers(module)
        return cls(module, name, tuple(dict.fromkeys(modules)))

    def read(self) -> torch.Tensor:
        """The tensor as it is now.

        Raises:
            DqarError: It is not there.
        """
        found: torch.Tensor = getattr(self.owner, self.name)
        if found.is_meta:
            raise DqarError(
                f"{self.name} of a {type(self.owner).__name__} is on the meta device while "
                "its block runs: no hook has brought it in. Expected hooks that do around the "
                "block or around modules inside of it, as accelerate and diffusers put them"
            )
        return found.detach()


def find_movers(module: nn.Module) -> list[nn.Module]:
    """The modules whose hooks bring in a module that has hooks, and take it away."""
    if not has_moving(module):
        return []
    groups = [getattr(h, "group", None) for _, hooks in find_hooks(module) for h in hooks]
    first = [group.onload_leader for group in groups if group is not None]
    last = [group.offload_leader for group in groups if group is not None]
    return [each for each in (*first, module, *last) if each is not None]


class WithWeights:
    """A function of a block that is given weights which are there for a call only.

    Args:
        function: The function.
        static: What it takes after its inputs, weights among them.
    """

    def __init__(self, function: Callable[..., Any], static: Sequence[Any]) -> None:
        self._function, self._static = function, static
        weights = [each for each in static if isinstance(each, OffloadedTensor)]
        self._inside = tuple(dict.fromkeys(m for each in weights for m in each.inside))

    def __call__(self, *inputs: Any) -> Any:
        """Call it while the weights are there."""
        with brought_in(self._inside):
            static = [s.read() if isinstance(s, OffloadedTensor) else s for s in self._static]
            return self._function(*inputs, *static)


@contextmanager
def brought_in(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run the hooks of modules that do not run themselves: all that begin, all that end."""
    begun: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            for hook in [hook for _, hooks in find_hooks(module) for hook in hooks]:
                begun.append((module, hook))
                hook.pre_forward(module)
        yield
    finally:
        for module, hook in begun:
            hook.post_forward(module, None)
