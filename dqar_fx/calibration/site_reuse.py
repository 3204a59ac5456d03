"""Trying a reuse: a graph on which one site at a time gives what it gave before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.builder.choose_sites import choose_sites
from dqar_fx.passes import (
    FORMATS,
    compute_or_reuse,
    find_sites,
    insert_guards,
)
from dqar_fx.passes.pipeline import BEFORE_LOOKING_AT_SITES
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.passes.support.runner import fork, run_pass, run_passes
from dqar_fx.schedule.action import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from dqar_fx.passes.support.module_sites import Match

    TensorSequence = Sequence[torch.Tensor]


@dataclass(frozen=True)
class SiteReuse:
    """A guarded graph on which a single site is reused.

    Attributes:
        gm: Maps the denoiser's inputs, actions and slots to the denoiser's outputs and then
            the outputs of all sites.
        num_outputs: How many of these are the denoiser's.
        spans: Where each site's outputs stand among all outputs.
    """

    gm: fx.GraphModule
    num_outputs: int
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule, matches: Sequence[Match]) -> SiteReuse:
        """Guard the matches of a graph, which is edited in place."""
        run_pass(gm, partial(insert_guards, matches=matches, cache=FORMATS["same"]))
        outputs, spans = list(graph_outputs(gm.graph)), []
        num_outputs = len(outputs)
        for guard in gm.graph.find_nodes(op="call_function", target=compute_or_reuse):
            spans.append(slice(len(outputs), len(outputs) + len(guard.users)))
            outputs += guard.users
        gm.graph.output_node().args = (tuple(outputs),)
        gm.recompile()
        return cls(gm, num_outputs, tuple(spans))

    def run(
        self, leaves: Sequence[Any], site: int, kept: TensorSequence
    ) -> tuple[TensorSequence, TensorSequence]:
        """Compute a step with one site reused; outputs of the denoiser, and of the site."""
        buffers, extra = iter(kept), list[Any]()
        for node in self.gm.graph.find_nodes(op="placeholder")[len(leaves) :]:
            if "action" in node.meta:
                is_reused = node.meta["action"] == site
                extra.append(Action.REUSE if is_reused else Action.COMPUTE)
            else:
                extra.append(next(buffers) if node.meta["slot"][0] == site else None)
        values = self.gm(*leaves, *extra)
        return values[: self.num_outputs], values[self.spans[site]]


def prepare_sites(
    gm: fx.GraphModule, sites: str | Sequence[str]
) -> tuple[fx.GraphModule, list[Match]]:
    """Fork a captured graph, and find the sites in the fork that ``transform`` would find.

    Raises:
        SiteError: No site is found, or a pattern selects none.
    """
    own = fork(gm)
    run_passes(own, BEFORE_LOOKING_AT_SITES)
    matches, near_misses = find_sites(own, [sites] if isinstance(sites, str) else sites)
    return own, choose_sites(matches, near_misses, sites)


def relative_error(right: TensorSequence, other: TensorSequence) -> torch.Tensor:
    """The norm of a difference by that of what is right, float32, over several tensors."""
    difference = [a.float() - b.float() for a, b in zip(right, other, strict=True)]
    return norm_of(difference) / norm_of(right).clamp(min=torch.finfo(torch.float32).tiny)


def norm_of(tensors: TensorSequence) -> torch.Tensor:
    """The Euclidean norm of all values of several tensors: float32, without dimensions."""
    norms = [torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]
    whole: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole
