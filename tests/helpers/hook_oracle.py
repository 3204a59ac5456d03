"""The oracles: the untouched model, what its attention keeps replaced through plain hooks.

They share no code with the package: attention modules are known by their diffusers class,
keys and values by the call of torch that reads them, and the branch table is read as an array
of numbers. What is kept may go through a storage format, which is given as a function.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.models.transformers.transformer_wan import WanAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

COMPUTE, STORE, REUSE, FORECAST = 0, 1, 2, 3


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
        kinds = Attention | FluxAttention | WanAttention
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


class GivenWeights(ForecastOracle):
    """Adds up what was kept with the table's weights."""

    def hook(self, site: int, step: int) -> Any:
        """The hook of one site for one step."""
        inner = super().hook(site, step)

        def replace(*given: Any) -> Any:
            self.weights = self.table.weights[step, site].tolist()
            return inner(*given)

        return replace

    def predict(
        self, past: list[tuple[int, torch.Tensor]], step: int, order: int
    ) -> torch.Tensor:
        """The weighted sum of one tensor's values."""
        pairs = zip(past, self.weights, strict=False)
        total = sum(weight * value.double() for (_, value), weight in pairs)
        return total.to(past[0][1].dtype)


class ResidualOracle(ForecastOracle):
    """The same with blocks and spans among the sites: what they add to their input is kept.

    A span ``blocks.1:4`` takes the inputs of block 1 and the outputs of block 3. Streams are
    known by the names that diffusers gives them.
    """

    STREAMS = ("encoder_hidden_states", "hidden_states")

    def __init__(self, model: nn.Module, table: Any) -> None:
        self.model, self.table, self.kept = model, table, {}
        self.ends = [self.ends_of(path) for path in table.sites]
        self.bases: dict[int, dict[str, torch.Tensor]] = {}

    def ends_of(self, path: str) -> tuple[nn.Module, nn.Module]:
        """The first and the last module of a site."""
        stack, _, numbers = path.rpartition(".")
        if ":" not in numbers:
            return (self.model.get_submodule(path),) * 2
        first, last = map(int, numbers.split(":"))
        blocks = self.model.get_submodule(stack)
        return blocks[first], blocks[last - 1]

    @torch.no_grad()
    def __call__(self, step: int, **inputs: Any) -> torch.Tensor:
        """One step."""
        handles = []
        order = sorted(range(len(self.ends)), key=lambda s: ":" in self.table.sites[s])
        for site in order:  # hooks run as registered: of a block before those of its span
            first, last = self.ends[site]
            handles.append(last.register_forward_hook(self.hook(site, step)))
            if self.is_residual(site):
                remember = self.remember(site)
                handles.append(first.register_forward_pre_hook(remember, with_kwargs=True))
        try:
            return self.model(**inputs).sample
        finally:
            for handle in handles:
                handle.remove()

    def is_residual(self, site: int) -> bool:
        """Whether a site is a block or a span."""
        return type(self.ends[site][1]).__name__.endswith("Block")

    def remember(self, site: int) -> Any:
        """The hook that notes what a site adds to."""

        def note(_module: nn.Module, args: Any, given: Any) -> None:
            named = dict(zip(reversed(self.STREAMS), args, strict=False)) | given
            self.bases[site] = {n: named[n] for n in self.STREAMS if named.get(n) is not None}

        return note

    def hook(self, site: int, step: int) -> Any:
        """The hook of one site for one step."""
        if not self.is_residual(site):
            return super().hook(site, step)
        action, order = self.table.actions[step, site], self.table.orders[step, site]

        def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
            single = not isinstance(output, tuple)
            outputs = (output,) if single else output
            names = self.STREAMS[-len(outputs) :]
            bases = [self.bases[site].get(name) for name in names]
            past = self.kept.setdefault(site, [])
            if action == STORE:
                added = tuple(
                    None if o is None else o - b for o, b in zip(outputs, bases, strict=True)
                )
                past.insert(0, (step, added))
            if action in (REUSE, FORECAST):
                added = [
                    value
                    if action == REUSE or value is None
                    else self.predict([(s, v[j]) for s, v in past], step, int(order))
                    for j, value in enumerate(past[0][1])
                ]
                outputs = tuple(
                    None if a is None else b + a for a, b in zip(added, bases, strict=True)
                )
            return outputs[0] if single else outputs

        return replace


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
