"""How to make the untransformed model, and those that dqar_fx transforms."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dqar_fx
from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import EAGER, Entrant
from dqar_fx import Denoiser, Guidance, Schedule


@dataclass(frozen=True)
class Untransformed:
    """The model as it is, or compiled as one graph."""

    identity: Mapping[str, Any] = field(default_factory=dict)

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it."""
        return Entrant(bench.original if mode == EAGER else bench.compiled)


@dataclass(frozen=True)
class Transformed:
    """The model with a schedule.

    Attributes:
        make: Makes the schedule, once there is a pipeline to calibrate it on.
        identity: What the schedule follows from.
        sites: Where it applies; None for those that the schedule is meant for.
        guidance: What the unconditional half of a batch does; None for the same.
    """

    make: Callable[[Bench], Schedule]
    identity: Mapping[str, Any]
    sites: str | tuple[str, ...] | None = None
    guidance: Guidance | None = None

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it, of what was captured and compiled for other schedules of these sites."""
        schedule = self.make(bench)
        sites = self.sites or schedule.sites or "attention"
        unit = None if mode == EAGER else bench.lowering
        given = {} if self.guidance is None else {"guidance": self.guidance}
        key = (sites, str(unit), *given)
        known = bench.made.get(key)
        if known is None:
            built = dqar_fx.transform(
                bench.original, schedule, sites=sites, compile=unit, **given
            )
        else:
            built = known.with_schedule(schedule, **given)
        bench.made[key] = built
        return Entrant(built, partial(forgotten, built))


@contextmanager
def forgotten(denoiser: Denoiser) -> Iterator[None]:
    """Without anything that is kept of an earlier trajectory, broken off or not."""
    denoiser.reset()
    yield
