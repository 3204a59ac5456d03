"""What rows and trajectories run: kernels, and the calls and steps around them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace

from .kernels import Kernel
from .operation import Operation


@dataclass(frozen=True)
class Workload:
    """Kernels, and what is done around them.

    Attributes:
        kernels: How often each kernel runs.
        calls: How many regions are called.
        inputs: How many tensors these calls are given.
        steps: How many steps there are.
        regions: How often each region is called, by `region_key`; `ahead_key` stands for what
            is evaluated ahead.
    """

    kernels: Counter[Kernel] = field(default_factory=Counter)
    calls: int = 0
    inputs: int = 0
    steps: int = 0
    regions: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Workload) -> Workload:
        return Workload(
            self.kernels + other.kernels,
            self.calls + other.calls,
            self.inputs + other.inputs,
            self.steps + other.steps,
            self.regions + other.regions,
        )

    def __or__(self, other: Workload) -> Workload:
        """Take each kernel and region as often as the workload that has more of it."""
        return replace(
            self,
            kernels=self.kernels | other.kernels,
            regions=self.regions | other.regions,
        )

    def scaled(self, factor: int) -> Workload:
        """Give every kernel ``factor`` times as many rows."""
        scaled = Counter({kernel.scaled(factor): n for kernel, n in self.kernels.items()})
        return replace(self, kernels=scaled)

    def named(self, kind: str) -> Workload:
        """Let all kernels be of one of the `COST_KINDS`."""
        renamed = Counter[Kernel]()
        for kernel, count in self.kernels.items():
            renamed[replace(kernel, kind=kind)] += count
        return replace(self, kernels=renamed)

    def operations(self) -> Counter[Operation]:
        """Count the operators that are timed."""
        found = Counter[Operation]()
        for kernel, count in self.kernels.items():
            for operation in kernel.timed:
                found[operation] += count
        return found


def region_key(structure: str) -> str:
    """Give a short name to a lowered region: equal for regions of equal structure."""
    return hashlib.sha256(structure.encode()).hexdigest()[:16]


def ahead_key(num_steps: int) -> str:
    """Give a name to the conditioning that is evaluated for so many steps at once."""
    return f"conditioning of {num_steps} steps"
