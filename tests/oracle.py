"""The oracles: the untouched model, what its attention keeps replaced through plain hooks.

They share no code with the package: attention modules are known by their diffusers class,
keys and values by the call of torch that reads them, and the branch table is read as an array
of numbers. What is kept may go through a storage format, which is given as a function.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

COMPUTE, STORE, REUSE = 0, 1, 2


def unchanged(value: torch.Tensor) -> torch.Tensor:
    """What becomes of a value in a slot of its own dtype."""
    return value


class Oracle:
    """Runs a model step by step with the actions of a table's rows.

    Args:
        model: The model.
        slot: What becomes of a value that goes through a slot.
    """

    def __init__(
        self, model: nn.Module, slot: Callable[[torch.Tensor], torch.Tensor] = unchanged
    ) -> None:
        self.model, self.slot = model, slot
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
                several = isinstance(output, tuple)
                self.kept[site] = (
                    tuple(map(self.slot, output)) if several else self.slot(output)
                )
            return self.kept[site] if action == REUSE else output

        return replace


class KeyValueOracle:
    """Runs a model step by step, with fresh queries on kept keys and values.

    Every call of ``scaled_dot_product_attention`` on as many keys as queries is a site, in
    order; other keys are those of a text alone, which no step changes.

    Args:
        model: The model.
        slot: What becomes of a tensor that goes through a slot.
    """

    def __init__(
        self, model: nn.Module, slot: Callable[[torch.Tensor], torch.Tensor] = unchanged
    ) -> None:
        self.model, self.slot = model, slot
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, actions: Sequence[int], **inputs: Any) -> torch.Tensor:
        """One step."""
        original, remaining = F.scaled_dot_product_attention, iter(enumerate(actions))

        def attend(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            *args: Any,
            **more: Any,
        ) -> torch.Tensor:
            if query.shape == key.shape:
                site, action = next(remaining)
                if action == STORE:
                    self.kept[site] = (self.slot(key), self.slot(value))
                if action == REUSE:
                    key, value = self.kept[site]
            return original(query, key, value, *args, **more)

        with mock.patch.object(F, "scaled_dot_product_attention", attend):
            result = self.model(**inputs).sample
        assert next(remaining, None) is None, "more actions than attentions"
        return result
