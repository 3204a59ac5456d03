"""The model that runs around its captured blocks: a fork whose blocks ask who stands in."""

from __future__ import annotations

import threading
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from dqar_fx.capture.capture import fork_to_trace
from dqar_fx.capture.offloaded import OffloadedTensor, describe_offload, replace_inside

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

    Hooks of the blocks run around what stands in for them, those included by which weights
    come and go. Calls of several threads do not meet.

    Args:
        model: The model; it is not changed.
        paths: Of the blocks.

    Attributes:
        model: The fork.
        is_outdated: Whether a call of it did something else than what was captured.
        offload: Who brings weights in, in words; empty where they stay.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self.is_outdated = False
        self.model = fork_to_trace(model)
        self._now = threading.local()
        self.offload = describe_offload(model)
        self._paths = find_siblings(model, paths)
        for path in self._paths:
            replace_inside(self.model.get_submodule(path), partial(self._stand_in, path))

    def find_weight(self, path: str) -> OffloadedTensor:
        """A parameter or buffer of a block, where it is there for the time of a call only."""
        return OffloadedTensor.find(self.model, path, self._paths)

    def run(self, runner: BlockRunner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model; what it returns."""
        before = getattr(self._now, "runner", None)
        self._now.runner = runner
        try:
            return self.model(*args, **kwargs)
        finally:
            self._now.runner = before

    def _stand_in(self, path: str, own: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(own)
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
