"""What the cache of a contender holds, after each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.contenders.contenders import Entrant
from benchmarks.harness.timing import hooked
from dqar_fx import Denoiser

OWNERS = ("diffusers.hooks", "cache_dit")
"""Packages whose objects are looked into for tensors."""


@contextmanager
def watched(entrant: Entrant) -> Iterator[list[int]]:
    """Append the bytes that a contender's cache holds after each call, while inside."""
    seen: list[int] = []

    def look(*_: Any) -> None:
        held = count_held(entrant.module)
        if held is not None:
            seen.append(held)

    with hooked(entrant.module.register_forward_hook(look)):
        yield seen


def count_held(module: nn.Module) -> int | None:
    """Bytes that a cache holds; None for a model without one."""
    if isinstance(module, Denoiser):
        return module.cache_bytes * len(module.program.streams)
    roots = list(find_caches(module))
    if not roots:
        return None
    storages = (tensor.untyped_storage() for tensor in find_tensors(roots))
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def find_caches(module: nn.Module) -> Iterator[Any]:
    """Hooks of diffusers and contexts of cache-dit on a model."""
    for child in module.modules():
        registry = getattr(child, "_diffusers_hook", None)
        if registry is not None:
            yield from registry.hooks.values()
        manager = vars(child).get("_context_manager")
        if manager is not None:
            yield manager


def find_tensors(roots: list[Any]) -> Iterator[torch.Tensor]:
    """Tensors that objects of these packages hold, at any depth, without modules."""
    left, seen = list(roots), set[int]()
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value
        elif type(value).__module__.startswith(OWNERS) and hasattr(value, "__dict__"):
            left += vars(value).values()
