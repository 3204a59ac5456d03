"""Regions that are compiled once for all sizes of the inputs.

A capture for all shapes says of each number in a region as which expression of sizes it came
about. For a compiler, these numbers are read off the region's inputs, whose dimensions are
declared dynamic. What is compiled so serves the programs of all shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental import _config

from dqar_fx.passes import free_sizes
from dqar_fx.passes.support.graphs import structure_of
from dqar_fx.passes.support.runner import fork, run_pass
from dqar_fx.passes.support.sizes import DEPENDENT, number_at
from dqar_fx.passes.support.tracing_lock import TRACING
from dqar_fx.plan.unlowered import specialise_region

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import fx

    from dqar_fx.passes.support.sizes import Sizes
    from dqar_fx.schedule.action import Action

    from .lowering import Lowering


@dataclass(frozen=True)
class FreeRegion:
    """A compiled region of any sizes.

    Attributes:
        function: What runs it, given empty tensors that have numbers as their sizes first.
        numbers: These numbers.
    """

    function: Callable[..., Sequence[Any]]
    numbers: tuple[Any, ...]

    def at(self, sizes: Sizes) -> Callable[..., Sequence[Any]]:
        """What runs it at sizes."""
        with torch.inference_mode(mode=False):  # or it is compiled for tensors of that kind
            given = [torch.empty(number_at(number, sizes), 0) for number in self.numbers]
        return partial(self.function, *given) if given else self.function


class MarkingCall:
    """Marks the dynamic dimensions of inputs when a region is compiled, at its first call.

    Args:
        function: What runs the region.
        dims: The dynamic dimensions of each input.
    """

    def __init__(
        self, function: Callable[..., Sequence[Any]], dims: Sequence[tuple[int, ...]]
    ) -> None:
        self._function, self._dims, self._is_compiled = function, dims, False

    def __call__(self, *inputs: torch.Tensor) -> Sequence[Any]:
        """Give the region's outputs."""
        if self._is_compiled:
            return self._function(*inputs)
        marked = [mark(each, dims) for each, dims in zip(inputs, self._dims, strict=True)]
        patch = _config.patch  # type: ignore[attr-defined]
        with TRACING, patch(use_duck_shape=False):  # equal sizes may differ later
            results = self._function(*marked)
        self._is_compiled = True
        return results


def mark(tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """The tensor as another object, with dimensions marked as dynamic."""
    if not dims:
        return tensor
    other = tensor.detach()
    torch._dynamo.maybe_mark_dynamic(other, dims)
    return other


class FreeRegions:
    """The regions of a capture that are compiled for all sizes.

    Args:
        captured: The value of each symbol where the graph was captured.

    Attributes:
        known: By structure.
    """

    def __init__(self, captured: Sizes) -> None:
        self._captured = captured
        self.known: dict[str, FreeRegion] = {}
        self._of: dict[Hashable, FreeRegion] = {}

    def share(self, sizes: Sizes) -> Callable[..., Callable[..., Sequence[Any]]]:
        """What gives a lowering at sizes what runs its regions."""
        return partial(self._function_of, sizes)

    def _function_of(
        self,
        sizes: Sizes,
        lowering: Lowering,
        region: fx.GraphModule,
        actions: tuple[Action, ...],
        live: tuple[bool, ...],
    ) -> Callable[..., Sequence[Any]]:
        """What runs a region at sizes; lowered if none of the same structure is known."""
        origin = region.meta.get("free", region)
        if (origin, actions, live) not in self._of:
            free = specialise_region(origin, actions, live)[0]
            structure = structure_of(free)
            if structure not in self.known:
                self.known[structure] = self._lower(lowering, free)
            self._of[origin, actions, live] = self.known[structure]
        return self._of[origin, actions, live].at(sizes)

    def _lower(self, lowering: Lowering, free: fx.GraphModule) -> FreeRegion:
        lowered = fork(free)
        free_pass = partial(free_sizes, captured=self._captured)
        lowering.reports.append(run_pass(lowered, free_pass, "region"))
        inputs = lowered.graph.find_nodes(op="placeholder")
        numbers = tuple(node.meta["size"] for node in inputs if "size" in node.meta)
        dims = [dynamic_dims(node) for node in inputs]
        function = lowering.lower(lowered)
        return FreeRegion(MarkingCall(function, dims) if any(dims) else function, numbers)


def dynamic_dims(node: fx.Node) -> tuple[int, ...]:
    """The dimensions of an input that may have any size."""
    sizes = enumerate(node.meta.get("sizes", ()))
    return tuple(dim for dim, size in sizes if isinstance(size, DEPENDENT))
