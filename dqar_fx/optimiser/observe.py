"""What one run of the untransformed denoiser shows: how its sites move, and what that does.

Every forecast is a weighted sum of kept values, so that its error is a quadratic form of their
inner products. These are all that is noted of a site: from them the error of every cell - any
age, any steps kept, any order, any method - is known after one run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.calibration.probe import Tried, prepared, relative
from dqar_fx.capture.capture import capture
from dqar_fx.capture.inputs import Roles
from dqar_fx.conditioning.conditioning import Ahead
from dqar_fx.passes.support.editing import emit
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.schedule.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import fx, nn

    from dqar_fx.capture.capture import Capture
    from dqar_fx.passes import Site
    from dqar_fx.passes.support.module_sites import Match
    from dqar_fx.program.compile_options import CompileOptions
    from dqar_fx.steps.steps import Position

    Values = Sequence[torch.Tensor]


class Notes:
    """Sums up what observers see, over batches and streams.

    Args:
        num_steps: Steps of the trajectory.
        reach: How many steps back a kept value may be.
        tries: Reuses to try at each step, of one site each.
        rng: Chooses them.

    Attributes:
        gram: float64 ``[sites, steps, steps]``: inner products of a site's values at two steps
            that are at most ``reach`` apart.
        tried: Per reuse that was tried: step, site, relative error of the denoiser's output,
            and of the site.
    """

    def __init__(
        self, num_steps: int, reach: int, tries: int, rng: np.random.Generator
    ) -> None:
        self.num_steps, self.reach = num_steps, reach
        self._tries, self._rng = tries, rng
        self.sites: tuple[Site, ...] = ()
        self.gram: NDArray[np.float64] = np.zeros((0, num_steps, num_steps))
        self.tried: list[tuple[int, int, float, float]] = []

    def note_sites(self, sites: tuple[Site, ...]) -> None:
        """Which sites an observer looks at."""
        if not self.sites:
            self.sites = sites
            self.gram = np.zeros((len(sites), self.num_steps, self.num_steps))

    def note_products(self, site: int, step: int, products: dict[int, float]) -> None:
        """Inner products of a site's value at a step with those of this and earlier steps."""
        for other, product in products.items():
            self.gram[site, step, other] += product
            if other != step:
                self.gram[site, other, step] += product

    def choose(self) -> list[int]:
        """Sites whose reuse to try at a step."""
        count = min(self._tries, len(self.sites))
        return sorted(self._rng.choice(len(self.sites), count, replace=False).tolist())


@dataclass
class Past:
    """What one stream gave at its last steps: per step, per site, its kept values."""

    trajectory: object = None
    steps: dict[int, list[Values]] = field(default_factory=dict)


@dataclass(frozen=True)
class ObserverBuilder:
    """Builds an observer for each input signature of a denoiser."""

    notes: Notes
    sites: str | Sequence[str]

    def with_schedule(self, schedule: Schedule) -> ObserverBuilder:
        """An observer has no schedule."""
        del schedule
        return self

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
    ) -> Any:
        """The observer, which a denoiser calls as it calls a program."""
        del options
        return Observer(capture(model, args, kwargs), self.sites, self.notes)


class Observer:
    """Computes every step of one input signature, and notes what its sites give.

    Args:
        captured: The model as a graph.
        sites: As given to ``transform``.
        notes: Where to write.
    """

    def __init__(self, captured: Capture, sites: str | Sequence[str], notes: Notes) -> None:
        self.captured = captured
        self.roles = Roles.of(captured.gm)
        self.ahead = Ahead("step", is_compiled=False)
        self._notes = notes
        gm, matches = prepared(captured.gm, sites)
        paths = [match.site.path for match in matches]
        self.table = Schedule.compute_all(notes.num_steps).resolve(paths)
        self._num_outputs = len(graph_outputs(gm.graph))
        self._sizes = [len(match.kept) for match in matches]
        expose_kept(gm, matches)
        self._observed = gm
        self._tried = Tried.of(*prepared(captured.gm, sites))
        self._past: dict[object, Past] = {}
        notes.note_sites(tuple(match.site for match in matches))

    def reset(self) -> None:
        """Forget the steps before."""
        self._past.clear()

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """One step, as the original computes it."""
        past = self._past.get(position.stream)
        if past is None or past.trajectory is not position.trajectory:
            past = self._past[position.stream] = Past(position.trajectory)
        step, reach = position.step, self._notes.reach
        past.steps = {s: kept for s, kept in past.steps.items() if step - s <= reach}
        values = self._observed(*leaves)
        outputs, rest = values[: self._num_outputs], iter(values[self._num_outputs :])
        past.steps[step] = [[next(rest) for _ in range(size)] for size in self._sizes]
        for site in range(len(self._sizes)):
            kept = {s: flat(each[site]) for s, each in past.steps.items()}
            self._notes.note_products(site, step, products(kept, step))
        if step - 1 in past.steps:
            self._try(leaves, outputs, past, step)
        return list(outputs)

    def _try(self, leaves: Sequence[Any], outputs: Values, past: Past, step: int) -> None:
        """Reuse single sites from the step before, and note what that does."""
        for site in self._notes.choose():
            old, now = past.steps[step - 1][site], past.steps[step][site]
            found, _ = self._tried.run(leaves, site, old)
            error = relative(outputs, found).item()
            self._notes.tried.append((step, site, error, relative(now, old).item()))


def expose_kept(gm: fx.GraphModule, matches: Sequence[Match]) -> None:
    """Let a graph also give what each site keeps."""
    output = gm.graph.output_node()
    with gm.graph.inserting_before(output):
        kept = [node for match in matches for node in kept_nodes(gm.graph, match)]
    output.args = ((*graph_outputs(gm.graph), *kept),)
    gm.recompile()


def kept_nodes(graph: fx.Graph, match: Match) -> list[fx.Node]:
    """What a site keeps: of a residual site, what it adds to its inputs."""
    if not match.bases:
        return list(match.kept)
    pairs = zip(match.outputs, match.bases, strict=True)
    return [emit(graph, lambda a, b: (a - b,), pair)[0] for pair in pairs]


def flat(values: Values) -> torch.Tensor:
    """All values of a site in one line, where float64 exists."""
    device = "cpu" if values[0].device.type == "mps" else values[0].device
    return torch.cat([value.detach().to(device).flatten() for value in values])


def products(kept: dict[int, torch.Tensor], step: int) -> dict[int, float]:
    """Inner products, in float64, of the value at a step with each."""
    dot = partial(torch.dot, kept[step].double())
    return {other: dot(value.double()).item() for other, value in kept.items()}
