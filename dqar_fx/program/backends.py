"""Backends: what runs the graph of a region, and at which boundaries the step is cut for it.

A backend is one class here and one entry of `BACKENDS`. What it is asked for elsewhere is only
what `Backend` lists, so that no other file names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

REPLAYING_MODES = ("reduce-overhead", "max-autotune")
"""Modes of ``torch.compile`` that replay CUDA graphs: these own their outputs' memory."""


class Backend(Protocol):
    """Runs the graphs of regions."""

    name: ClassVar[str]
    """What options, logs and reports call it."""
    is_compiled: ClassVar[bool]
    """Whether sums may be taken in another order than the original takes them."""
    cuts_blocks: ClassVar[bool]
    """Whether each repeated block is a region, or the whole step is one."""

    @property
    def replays(self) -> bool:
        """Whether an output may be overwritten when a region runs again."""

    def compile(self, gm: fx.GraphModule) -> Callable[..., Sequence[Any]]:
        """What runs a graph whose code is generated."""

    def check(self) -> None:
        """Raise, with any error, for what it was asked for and is not able to do."""


@dataclass(frozen=True)
class Eager:
    """Runs graphs operator by operator, on any device."""

    name: ClassVar[str] = "eager"
    is_compiled: ClassVar[bool] = False
    cuts_blocks: ClassVar[bool] = True
    replays: ClassVar[bool] = False

    def compile(self, gm: fx.GraphModule) -> Callable[..., Sequence[Any]]:
        """The graph's own code."""
        return gm.forward

    def check(self) -> None:
        """It is able to do all of it."""


@dataclass(frozen=True)
class Regional:
    """Compiles the distinct variants of blocks, and of what lies between blocks."""

    keywords: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "regional"
    is_compiled: ClassVar[bool] = True
    cuts_blocks: ClassVar[bool] = True

    @cached_property
    def replays(self) -> bool:
        """Whether it replays CUDA graphs."""
        options = self.keywords.get("options") or {}
        graphs = bool(options.get("triton.cudagraphs"))
        return graphs or self.keywords.get("mode") in REPLAYING_MODES

    def compile(self, gm: fx.GraphModule) -> Callable[..., Sequence[Any]]:
        """A graph that compiles at its first call, without breaks."""
        return self._wrap(gm.forward)

    def check(self) -> None:
        """Raise whatever torch raises for the keywords."""
        self._wrap(lambda: None)

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, **{"fullgraph": True, **self.keywords})


@dataclass(frozen=True)
class Whole(Regional):
    """Compiles one graph per distinct row: the step is a single region."""

    name: ClassVar[str] = "whole"
    cuts_blocks: ClassVar[bool] = False


BACKENDS: dict[str, Callable[[Mapping[str, Any]], Backend]] = {
    each.name: each for each in (Regional, Whole)
}
"""The backends that take keywords of ``torch.compile``, by name; without one it is `Eager`."""
UNITS = tuple(BACKENDS)
LOWERINGS = (*UNITS, Eager.name)
"""Names of all of them."""


def unit_of(lowering: str) -> str | None:
    """The ``compile`` argument of ``transform`` for a name of `LOWERINGS`."""
    return lowering if lowering in BACKENDS else None
