"""Clocks around the calls of regions, and what they say of a step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .workload import region_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from dqar_fx.plan.plan import Variant

    TimedCall = tuple[str, float, float]


@dataclass(frozen=True)
class StepTimes:
    """Where one step spent its time.

    Attributes:
        marks: Name, begin and end of each call of a region, in seconds.
        total_s: Seconds of the whole step.
    """

    marks: tuple[TimedCall, ...]
    total_s: float

    @property
    def own(self) -> list[tuple[str, float]]:
        """Name and seconds of each call."""
        return [(name, end - begin) for name, begin, end in self.marks]

    @property
    def outside_s(self) -> float:
        """Seconds of all that is in no call."""
        return self.total_s - sum(each_s for _, each_s in self.own)

    @property
    def calls(self) -> list[tuple[str, float]]:
        """Name and seconds of each call, with what lies between it and the one before."""
        begins = [begin for _, begin, _ in self.marks[:1]] + [m[2] for m in self.marks[:-1]]
        pairs = zip(self.marks, begins, strict=True)
        return [(name, end - begin) for (name, _, end), begin in pairs]

    @property
    def rest_s(self) -> float:
        """Seconds of what comes before the first call and after the last."""
        return self.total_s - sum(each_s for _, each_s in self.calls)


class CallClock:
    """Times the calls of regions, each until the device has done its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[TimedCall] = []

    def around(self, variant: Variant) -> Callable[..., Any]:
        """Put the clock around a variant's function, as programs ask their observer to."""
        return partial(self._call, region_key(variant.structure), variant.function)

    def time(self, run: Callable[[], Any]) -> StepTimes:
        """Run something, and tell what it and the calls of regions in it took."""
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
