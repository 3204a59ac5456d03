"""The model that runs around its captured blocks: a fork whose blocks ask who stands in."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from dqar_fx.capture.capture import fork_to_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class BlockRunner(Protocol):
    """What runs the blocks of one call of the model."""

    def call(
        self,
        path: str,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a block, or its own forward ``own``."""


class Host:
    """Runs a fork of a model, the blocks of which another runs.

    Hooks of the blocks run around what stands in for them. Calls of several threads do not
    meet.

    Args:
        model: The model; it is not changed.
        paths: Of the blocks.

    Attributes:
        model: The fork.
        is_outdated: Whether a call of it did something else than what was captured.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self.is_outdated = False
        self.model = fork_to_trace(model)
        self._now = threading.local()
        for path in find_siblings(model, paths):
            block = self.model.get_submodule(path)
            block.forward = self._stand_in(path, block.forward)

    def run(self, runner: BlockRunner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model; what it returns."""
        before = getattr(self._now, "runner", None)
        self._now.runner = runner
        try:
            return self.model(*args, **kwargs)
        finally:
            self._now.runner = before

    def _stand_in(self, path: str, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._now.runner.call(path, own, args, kwargs)

        return forward


def find_siblings(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Paths of some blocks, and of the other entries of their lists."""
    found = dict.fromkeys(paths)
    for path in list(found):
        owner, _, _ = path.rpartition(".")
        siblings = model.get_submodule(owner)
        if isinstance(siblings, nn.ModuleList):
            found |= {f"{owner}.{name}": None for name, _ in siblings.named_children()}
    return list(found)
