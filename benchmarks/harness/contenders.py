"""Who competes: the untransformed model, schedules, and fewer steps at equal cost."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

import dqar_fx
from dqar_fx import Schedule

WARMUP = 5
FEWER = "interval every=3 warmup=5"
"""The schedule whose cost the rival with fewer steps has."""


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: What the table calls it.
        steps: Denoising steps.
        schedule: Of a transformed model; None for the untransformed one.
        compiled: Whether anything is compiled.
        keep: What sites keep, as ``transform`` takes it.
        cache: How it is kept, as ``transform`` takes it.
    """

    name: str
    steps: int
    schedule: Schedule | None = None
    compiled: bool = True
    keep: str = "output"
    cache: str = "same"


@dataclass(frozen=True)
class Workshop:
    """Builds what a contender puts into the pipeline.

    Attributes:
        original: The untransformed model.
        lowering: ``"regional"``, ``"whole"`` or ``"eager"``.
    """

    original: nn.Module
    lowering: str

    @cached_property
    def compiled(self) -> Any:
        """The untransformed model as one graph; shared by those who use it."""
        # A second batch size gets a graph of its own, not a slower one for any size.
        return torch.compile(self.original, fullgraph=True, dynamic=False)

    def build(self, contender: Contender) -> Any:
        """A module to be called in the original's place."""
        if contender.schedule is not None:
            unit = self.lowering if contender.compiled else None
            return dqar_fx.transform(
                self.original,
                contender.schedule,
                keep=contender.keep,
                cache=contender.cache,
                compile=unit,
            )
        return self.compiled if contender.compiled else self.original


def list_schedules(steps: int) -> dict[str, Schedule]:
    """The schedules that take part, by name."""
    return {
        "compute_all": Schedule.compute_all(steps),
        f"linear warmup={WARMUP}": Schedule.linear(steps, WARMUP),
        f"linear warmup={WARMUP} max_age=3": Schedule.linear(steps, WARMUP, max_age=3),
        f"interval every=2 warmup={WARMUP}": Schedule.interval(steps, 2, warmup=WARMUP),
        FEWER: Schedule.interval(steps, 3, warmup=WARMUP),
    }


def line_up(steps: int, *, fewer_steps: int | None, compiled: bool) -> list[Contender]:
    """All contenders, in the order of the table.

    Args:
        steps: Denoising steps.
        fewer_steps: Steps of the untransformed model that cost as much as `FEWER`; None if
            that is unknown.
        compiled: Whether there is a compiler.
    """
    untransformed = [Contender("untransformed eager", steps, compiled=False)]
    if compiled:
        untransformed.append(Contender("untransformed compiled", steps))
    schedules = [
        Contender(name, steps, schedule, compiled)
        for name, schedule in list_schedules(steps).items()
    ]
    if fewer_steps is None:
        return untransformed + schedules
    fewer = Contender(f"untransformed {fewer_steps} steps", fewer_steps, compiled=compiled)
    return [*untransformed, *schedules, fewer]
