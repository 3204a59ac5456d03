"""The oracle of blocks whatever they are called with, and of parts of a model: plain hooks.

It shares no code with the package: the stream of a block is known by the name of its argument.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from tests.helpers.hook_oracle import REUSE, STORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

NAMES = ("control_hidden_states", "hidden_states", "visual_embed")
"""What blocks call their stream; of two such arguments the first is it."""


class BlockOracle:
    """Runs a model with blocks that keep their output less their input, in its dtype.

    Args:
        model: The model.
        table: Says what each site does at each step; its sites are paths of blocks.
        names: Where a block adds to another argument than the first of `NAMES`: its name.
    """

    def __init__(
        self, model: nn.Module, table: Any, names: dict[str, str] | None = None
    ) -> None:
        self.model, self.table, self.names = model, table, names or {}
        self.kept: dict[str, list[torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, step: int, **inputs: Any) -> torch.Tensor:
        """One step."""
        with ExitStack() as hooks:
            for column, path in enumerate(self.table.sites):
                replace = self.hook(path, self.table.actions[step, column])
                hooks.enter_context(hooked(self.model.get_submodule(path), replace))
            return self.model(**inputs).sample

    def hook(self, path: str, action: int) -> Callable[..., Any]:
        """The hook of one block for one step."""

        def replace(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            given = inspect.signature(block.forward).bind(*args, **kwargs).arguments
            name = self.names.get(path) or next(
                name for name in (*NAMES, "x") if name in given
            )
            outputs = output if isinstance(output, tuple) else (output,)
            bases = [None] * (len(outputs) - 1) + [given[name]]
            if action == STORE:
                self.kept[path] = [
                    o if b is None or o is None else o - b.to(o.dtype)
                    for o, b in zip(outputs, bases, strict=True)
                ]
            if action == REUSE:
                outputs = tuple(
                    k if b is None or k is None else b.to(k.dtype) + k
                    for k, b in zip(self.kept[path], bases, strict=True)
                )
            return outputs if isinstance(output, tuple) else outputs[0]

        return replace


class WholeOracle:
    """Runs a model with what leaves one of its modules kept, and read instead."""

    def __init__(self, model: nn.Module, last: str, actions: Any) -> None:
        self.model, self.last, self.actions = model, model.get_submodule(last), actions
        self.kept: Any = None

    @torch.no_grad()
    def __call__(self, step: int, **inputs: Any) -> torch.Tensor:
        """One step."""

        def replace(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
            if self.actions[step] == STORE:
                self.kept = output
            return self.kept if self.actions[step] == REUSE else output

        with hooked(self.last, replace):
            return self.model(**inputs).sample


@contextmanager
def hooked(module: nn.Module, replace: Callable[..., Any]) -> Iterator[None]:
    """A hook while this lasts."""
    handle = module.register_forward_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
