"""Modules that are called in the place of another one."""

from typing import Any

from torch import nn

from benchmarks.harness.macs import count_macs


class StandIn(nn.Module):
    """Is called in the place of a module, and has its attributes.

    Args:
        inner: That module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """The inner module's, where this one has none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Counting(StandIn):
    """Counts the multiply-accumulates of all calls."""

    macs = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module's result."""
        results: list[Any] = []
        self.macs += count_macs(lambda: results.append(self.inner(*args, **kwargs)))
        return results[0]
