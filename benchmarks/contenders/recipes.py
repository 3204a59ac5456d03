"""How to make the untransformed model, compiled in several ways, and what dqar_fx makes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch._inductor import config

import dqar_fx
from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Entrant
from benchmarks.contenders.kinds import EAGER, STOCK
from dqar_fx import Denoiser, Guidance, Schedule

REPEATED = ("BasicTransformerBlock",)
"""What ``DiTTransformer2DModel`` would list for ``compile_repeated_blocks``, if it did."""


@dataclass(frozen=True)
class Untransformed:
    """The model as it is, or compiled as one graph."""

    identity: Mapping[str, Any] = field(default_factory=dict)

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it."""
        return Entrant(bench.original if mode == EAGER else bench.compiled)


@dataclass(frozen=True)
class Solved:
    """The untransformed model with another solver.

    Attributes:
        make: Makes the scheduler for a pipeline.
        identity: What pictures follow from.
    """

    make: Callable[[Any], Any]
    identity: Mapping[str, Any]

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it."""
        return replace(Untransformed().build(bench, mode), scheduler=self.make(bench.pipe))


@dataclass(frozen=True)
class Repeated:
    """The untransformed model with its blocks compiled by ``compile_repeated_blocks``."""

    identity: Mapping[str, Any] = field(default_factory=lambda: {"unit": "repeated blocks"})

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it: with the list of blocks that the model lacks, unless as documented."""
        model: Any = bench.clone()
        if mode != STOCK:
            model._repeated_blocks = list(REPEATED)
        model.compile_repeated_blocks(fullgraph=True)
        return Entrant(model)


@dataclass(frozen=True)
class Frozen:
    """The untransformed model as one graph that owns its weights, packed.

    That is Inductor's ``freezing``; as an option of ``torch.compile`` it does nothing, since
    Dynamo reads it where it is set for all.
    """

    identity: Mapping[str, Any] = field(default_factory=lambda: {"unit": "freezing"})

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it: what is compiled during a trajectory owns its weights."""
        del mode
        compiled = bench.compile(bench.original, fullgraph=True, dynamic=False)
        return Entrant(compiled, partial(config.patch, freezing=True))


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


def make_interval(
    steps: int, bench: Bench | None = None, *, every: int, warmup: int, order: int
) -> Schedule:
    """Compute at regular steps; reuse, or forecast, between."""
    del bench
    schedule = Schedule.interval(steps, every, warmup=warmup)
    return schedule.forecast(order) if order else schedule
