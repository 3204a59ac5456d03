"""Memory: the highest a process reaches above where it was, and what a cache holds."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contenders.contenders import Entrant
from benchmarks.harness.timing import hooked
from dqar_fx import Denoiser

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OWNERS = ("diffusers.hooks", "cache_dit")
"""Packages whose objects are looked into for tensors."""


@dataclass
class Memory:
    """Peaks above a mark: of the device on CUDA, else of the process.

    Attributes:
        device: Which memory.
        mark: Bytes in use when `start` was called.
    """

    device: torch.device
    mark: int = 0

    def start(self) -> None:
        """From here on."""
        self.reset()
        self.mark = self.read_now()

    def reset(self) -> None:
        """Forget earlier peaks, where the system can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR.exists():
            try:
                CLEAR.write_text("5")
            except OSError:
                return  # then the peak is that of the process so far

    def above(self) -> int:
        """Bytes of the highest peak since `reset`, above the mark."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.mark
        return max(0, (read_status("VmHWM") or read_highest()) - self.mark)

    def read_now(self) -> int:
        """Bytes in use."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return read_status("VmRSS") or read_highest()


def read_status(name: str) -> int | None:
    """Bytes of an entry of Linux's table of this process; None elsewhere."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text().splitlines()
    found = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    kilobytes = next(found, None)
    return None if kilobytes is None else 1024 * int(kilobytes)


def read_highest() -> int:
    """Bytes of the process's highest resident memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---- what a cache holds -------------------------------------------------------------------


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
