"""What one stream knows of its conditioning between calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dqar_fx.steps.position import Position
    from dqar_fx.steps.seen import SeenTensor
    from dqar_fx.steps.timesteps import Timesteps

Outputs = tuple[torch.Tensor | None, ...]
"""What a stage gives at one step; None where nothing reads it."""


@dataclass(frozen=True)
class TabulatedStage:
    """A stage's outputs for each step of a trajectory, or None where it varies otherwise.

    Good for another trajectory of the same timesteps, as long as no other input changes.
    """

    trajectory: object
    timesteps: Timesteps
    rows: list[Outputs] | None

    def goes_on(self, position: Position) -> bool:
        """Whether it is good for a call of the same or of another trajectory."""
        if position.timesteps is None or not self.timesteps.is_equal(position.timesteps):
            return False
        return self.rows is not None or self.trajectory is position.trajectory


@dataclass(eq=False)
class Memo:
    """What one stream knows of its conditioning.

    Attributes:
        outputs: Per stage, what it gave for the inputs that were seen last.
        seen: Per denoiser input, the tensor that it was then.
        tabulated: Per stage, its outputs for a trajectory.
        digests: Per denoiser input that has not changed since, what its values were.
    """

    outputs: dict[int, Outputs] = field(default_factory=dict)
    seen: dict[int, SeenTensor] = field(default_factory=dict)
    tabulated: dict[int, TabulatedStage] = field(default_factory=dict)
    digests: dict[int, torch.Tensor] = field(default_factory=dict)
