"""A fingerprint of a model: its class, the shapes of its parameters, and a few values.

Values are compared to the precision of the coarser dtype, so that a model that was loaded in
another dtype is still the same model, and a fine-tuned one is not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dqar_fx.capture.compiled import find_original, plain_name
from dqar_fx.errors import ScheduleError
from dqar_fx.passes.support.inner_tensors import as_plain, inner_tensors

if TYPE_CHECKING:
    from torch import nn

NUM_VALUES = 8
"""Number of values that are taken of each parameter, evenly spaced."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Identifies the model that something was measured on.

    Attributes:
        model: Name of its class.
        structure: SHA-256 digest of its parameters' names and shapes.
        values: float32 ``[parameters, NUM_VALUES]``; empty for a model on the meta device.
        precision: Relative precision of its coarsest parameter's dtype.
    """

    model: str
    structure: str
    values: torch.Tensor
    precision: float = torch.finfo(torch.float32).eps

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> Fingerprint:
        """Take the fingerprint of a model."""
        original = find_original(model)
        parameters = ((plain_name(name), p) for name, p in original.named_parameters())
        named = sorted(pair for name, each in parameters for pair in inner_tensors(each, name))
        names = ";".join(f"{name} {list(parameter.shape)}" for name, parameter in named)
        digest = hashlib.sha256(names.encode()).hexdigest()
        has_values = named and all(parameter.device.type != "meta" for _, parameter in named)
        values = [sample_values(parameter) for _, parameter in named] if has_values else []
        return cls(
            type(original).__name__,
            digest,
            torch.stack(values).cpu() if values else torch.empty(0, NUM_VALUES),
            max(
                (torch.finfo(p.dtype).eps for _, p in named if p.is_floating_point()),
                default=0,
            ),
        )

    def refuse_other(self, model: nn.Module, what: str) -> None:
        """Raise unless a model has this fingerprint; ``what`` says what was measured of it.

        Raises:
            ScheduleError: It is another model.
        """
        found = Fingerprint.of(model)
        reason = self._difference(found)
        if reason is not None:
            raise ScheduleError(
                f"{what} was measured on another model: {reason}. Calibrate this model with "
                "dqar_fx.calibrate(pipeline, ...)"
            )

    def _difference(self, found: Fingerprint) -> str | None:
        """How another fingerprint differs, in words; None if it is of the same model."""
        if self.model != found.model:
            return f"a {self.model}, but this is a {found.model}"
        if self.structure != found.structure:
            return f"a {self.model} of other parameters or another size"
        if not (len(self.values) and len(found.values)):
            return None  # no values to compare on the meta device
        # in another dtype it may have come through a third one, such as bfloat16
        factor = 2 if self.precision == found.precision else 8
        tolerance = factor * max(self.precision, found.precision)
        largest = self.values.abs().amax(dim=1, keepdim=True).nan_to_num(0.0, 0.0)
        gap = (self.values - found.values).abs()
        near = (gap <= tolerance * largest) | torch.isclose(
            self.values, found.values, rtol=0, atol=0, equal_nan=True
        )
        others = int((~near.all(dim=1)).sum())
        return f"{others} of {len(near)} parameters have other values" if others else None


def sample_values(parameter: torch.Tensor) -> torch.Tensor:
    """Take some values of a parameter: float32 ``[NUM_VALUES]``."""
    flat = as_plain(parameter).reshape(-1)
    if flat.numel() == 0:
        return torch.zeros(NUM_VALUES, device=flat.device)
    last = torch.arange(NUM_VALUES, device=flat.device) * (flat.numel() - 1)
    return flat[last // (NUM_VALUES - 1)].float()
