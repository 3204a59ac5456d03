"""Observing one run of the untransformed denoiser: inner products of each site's values.

Every forecast is a weighted sum of kept values, so that its error is a quadratic form of their
inner products. These are all that is recorded of a site: from them the error of every cell -
any age, any steps kept, any order, any method - is known after one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dqar_fx.calibration.observe import SiteObserver, SiteValues
from dqar_fx.calibration.site_reuse import relative_error
from dqar_fx.passes.support.editing import emit
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.passes.support.module_sites import take_base

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import fx

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.calibration.observe import ObservedStep
    from dqar_fx.capture.capture import Capture
    from dqar_fx.passes import Site
    from dqar_fx.passes.support.module_sites import Match


class ProductRecord:
    """Sums what observers measure over batches and streams.

    Args:
        num_steps: Steps of the trajectory.
        max_age: How many steps back a kept value may be.
        reuses_per_step: How many reuses to try at each step, of one site each.
        rng: Chooses these reuses.

    Attributes:
        sites: The sites that are observed.
        gram: float64 ``[sites, steps, steps]``: inner products of a site's values at two steps
            that are at most ``max_age`` apart.
        reuses: Per reuse that was tried: step, site, relative error of the denoiser's output,
            relative error of the site's output.
    """

    def __init__(
        self, num_steps: int, max_age: int, reuses_per_step: int, rng: np.random.Generator
    ) -> None:
        self.num_steps, self.max_age = num_steps, max_age
        self._reuses_per_step, self._rng = reuses_per_step, rng
        self.sites: tuple[Site, ...] = ()
        self.gram: Floats = np.zeros((0, num_steps, num_steps))
        self.reuses: list[tuple[int, int, float, float]] = []

    def begin(self, sites: tuple[Site, ...]) -> None:
        """Make room for the sites that an observer has found, which are the same for all."""
        if not self.sites:
            self.sites = sites
            self.gram = np.zeros((len(sites), self.num_steps, self.num_steps))

    def add_products(self, site: int, step: int, products: Mapping[int, float]) -> None:
        """Add the products of a site's value at a step with itself and with earlier values."""
        for other, product in products.items():
            self.gram[site, step, other] += product
            if other != step:
                self.gram[site, other, step] += product

    def choose_sites(self) -> list[int]:
        """Draw the columns of the sites whose reuse to try at a step, in ascending order."""
        count = min(self._reuses_per_step, len(self.sites))
        return sorted(self._rng.choice(len(self.sites), count, replace=False).tolist())


class ProductObserver(SiteObserver):
    """Measures inner products of one input signature's sites, and tries some reuses."""

    def __init__(
        self, captured: Capture, sites: str | Sequence[str], record: ProductRecord
    ) -> None:
        super().__init__(captured, sites, record.num_steps, record.max_age)
        expose_kept(self._graph, self._matches)
        self._record = record
        record.begin(tuple(match.site for match in self._matches))

    def look(self, step: ObservedStep) -> list[SiteValues]:
        """Add the products of a step, and reuse some sites from the step before."""
        number, rest = step.position.step, iter(step.exposed)
        now = [SiteValues([next(rest) for _ in match.kept]) for match in self._matches]
        for site, values in enumerate(now):
            kept = {
                before: flatten_values(old[site].outputs) for before, old in step.past.items()
            }
            kept[number] = flatten_values(values.outputs)
            own = kept[number].double()
            products = {step: torch.dot(own, kept[step].double()).item() for step in kept}
            self._record.add_products(site, number, products)
        if number - 1 in step.past:
            for site in self._record.choose_sites():
                old = step.past[number - 1][site]
                error = self.reuse_error(step, site, old)
                of_site = relative_error(now[site].outputs, old.outputs).item()
                self._record.reuses.append((number, site, error, of_site))
        return now


def expose_kept(gm: fx.GraphModule, matches: Sequence[Match]) -> None:
    """Add what each site keeps to a graph's outputs: of a residual site, what it adds."""
    output = gm.graph.output_node()
    kept: list[fx.Node] = []
    with gm.graph.inserting_before(output):
        for match in matches:
            pairs = zip(match.outputs, match.bases, strict=False)
            added = [
                node if base is None else emit(gm.graph, subtract, (node, base))[0]
                for node, base in pairs
            ]
            kept += added or match.kept
    output.args = ((*graph_outputs(gm.graph), *kept),)
    gm.recompile()


def subtract(output: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `emit` takes for `take_base`."""
    return (take_base(output, base),)


def flatten_values(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """All values in one dimension, on a device that has float64."""
    device = "cpu" if values[0].device.type == "mps" else values[0].device
    return torch.cat([value.detach().to(device).flatten() for value in values])
