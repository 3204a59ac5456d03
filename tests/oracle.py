"""The oracle: the untouched model, its attention outputs replaced through plain hooks.

It shares no code with the package: attention modules are known by their diffusers class, and
the branch table is read as an array of numbers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

COMPUTE, STORE, REUSE, FORECAST = 0, 1, 2, 3


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


class ForecastOracle:
    """Runs a model with any of its modules kept, reused or forecast, as a table says.

    Taylor's forecast is recomputed from differences of tensors, the others by fitting
    polynomials to each element.
    """

    def __init__(self, model: nn.Module, table: Any) -> None:
        self.model, self.table = model, table
        self.modules = [model.get_submodule(path) for path in table.sites]
        self.kept: dict[int, list[tuple[int, tuple[torch.Tensor, ...]]]] = {}

    @torch.no_grad()
    def __call__(self, step: int, **inputs: Any) -> torch.Tensor:
        """One step."""
        handles = [
            module.register_forward_hook(self.hook(site, step))
            for site, module in enumerate(self.modules)
        ]
        try:
            return self.model(**inputs).sample
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, site: int, step: int) -> Any:
        """The hook of one site for one step."""
        action, order = self.table.actions[step, site], self.table.orders[step, site]

        def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
            single = not isinstance(output, tuple)
            outputs = (output,) if single else output
            past = self.kept.setdefault(site, [])
            if action == STORE:
                past.insert(0, (step, outputs))
            if action == REUSE:
                outputs = past[0][1]
            if action == FORECAST:
                outputs = tuple(
                    self.predict([(s, values[j]) for s, values in past], step, int(order))
                    for j in range(len(outputs))
                )
            return outputs[0] if single else outputs

        return replace

    def predict(
        self, past: list[tuple[int, torch.Tensor]], step: int, order: int
    ) -> torch.Tensor:
        """The forecast of one tensor."""
        if self.table.method == "taylor":
            return taylor_forecast(past[: order + 1], step)
        points = past[: order + (2 if self.table.method == "least_squares" else 1)]
        degree = order if self.table.method == "chebyshev" else max(len(points) - 2, 0)
        steps = np.array([s for s, _ in points], float)
        values = torch.stack([v for _, v in points]).double().flatten(1).numpy()
        fitted = np.polynomial.polynomial.polyfit(
            steps - steps[0], values, min(degree, len(points) - 1)
        )
        result = np.polynomial.polynomial.polyval(step - steps[0], fitted)
        return torch.from_numpy(result).reshape(points[0][1].shape).to(points[0][1].dtype)


def taylor_forecast(past: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
    """Value, first difference, second difference, ... each over the newest distance."""
    steps, rows = [s for s, _ in past], [v.double() for _, v in past]
    total, factor = rows[0].clone(), 1.0
    for power in range(1, len(past)):
        rows = [
            (rows[i] - rows[i + 1]) / (steps[i] - steps[i + 1]) for i in range(len(rows) - 1)
        ]
        factor *= (step - steps[0]) / power
        total += factor * rows[0]
    return total.to(past[0][1].dtype)
