"""Clocks around the calls of regions, and what they say of a step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.program.lowering import Lowering

from .workload import region_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from dqar_fx.plan.plan import Plan, Variant
    from dqar_fx.schedule.action import Action

    Mark = tuple[str, float, float]


@dataclass(frozen=True)
class StepTimes:
    """Where one step spent its time.

    Attributes:
        marks: Name, begin and end of each call of a region, in seconds.
        total_s: Of the whole step.
    """

    marks: tuple[Mark, ...]
    total_s: float

    @property
    def own(self) -> list[tuple[str, float]]:
        """Name and seconds of each call."""
        return [(name, end - begin) for name, begin, end in self.marks]

    @property
    def outside_s(self) -> float:
        """Of all that is in no call."""
        return self.total_s - sum(each_s for _, each_s in self.own)

    @property
    def calls(self) -> list[tuple[str, float]]:
        """Name and seconds of each call, with what lies between it and the one before."""
        begins = [begin for _, begin, _ in self.marks[:1]] + [m[2] for m in self.marks[:-1]]
        pairs = zip(self.marks, begins, strict=True)
        return [(name, end - begin) for (name, _, end), begin in pairs]

    @property
    def rest_s(self) -> float:
        """Of what comes before the first call and after the last."""
        return self.total_s - sum(each_s for _, each_s in self.calls)


class TimedLowering(Lowering):
    """Gives the variants of another lowering, with a clock around each.

    Args:
        own: The other one.
        device: Where it runs.
    """

    def __init__(self, own: Lowering, device: torch.device) -> None:
        super().__init__(own.options)
        self.packed_weights = own.packed_weights
        self._own = own
        self._device = device
        self._marks: list[Mark] = []

    def variant(
        self,
        plan: Plan,
        name: str,
        actions: tuple[Action, ...],
        live: tuple[bool, ...],
        *,
        packs: bool = False,
    ) -> Variant:
        """The other's lowered variant, timed."""
        found = self._own.variant(plan, name, actions, live, packs=packs)
        timed = partial(self._call, region_key(found.structure), found.function)
        return replace(found, function=timed)

    def time(self, run: Callable[[], Any]) -> StepTimes:
        """What something takes, and the calls of regions in it."""
        self._marks = []
        synchronise(self._device)
        begin = time.perf_counter()
        run()
        synchronise(self._device)
        total_s = time.perf_counter() - begin
        return StepTimes(tuple(self._marks), total_s)

    def _call(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        begin = time.perf_counter()
        results = function(*args)
        synchronise(self._device)
        self._marks.append((name, begin, time.perf_counter()))
        return results


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
