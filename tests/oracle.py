"""The oracle: the untouched model, its attention outputs replaced through plain hooks.

It shares no code with the package: attention modules are known by their diffusers class, and
the branch table is read as an array of numbers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

COMPUTE, STORE, REUSE = 0, 1, 2


class Oracle:
    """Runs a model step by step with the actions of a table's rows."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        kinds = Attention | FluxAttention
        self.attentions = [module for module in model.modules() if isinstance(module, kinds)]
        self.kept: dict[int, Any] = {}

    @torch.no_grad()
    def __call__(self, actions: Sequence[int], **inputs: Any) -> torch.Tensor:
        """One step."""
        with self.hooked(actions):
            return self.model(**inputs).sample

    @contextmanager
    def hooked(self, actions: Sequence[int]) -> Iterator[None]:
        """Hooks that keep and replace attention outputs."""
        assert len(actions) == len(self.attentions)
        handles = [
            module.register_forward_hook(self.hook(site, action))
            for site, (module, action) in enumerate(zip(self.attentions, actions, strict=True))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, site: int, action: int) -> Any:
        """The hook of one site for one step."""

        def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
            if action == STORE:
                self.kept[site] = output
            return self.kept[site] if action == REUSE else output

        return replace
