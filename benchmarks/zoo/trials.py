"""What each model must show when it is transformed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

import dqar_fx
from benchmarks.harness.verdicts import Verdict
from benchmarks.zoo.oracle import REUSE, STORE, Oracle, Tensors, tensors
from benchmarks.zoo.specimens import Specimen

STEPS, EVERY = 4, 2
ATTENTION = ("self", "cross", "joint")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""What compiling may change: it reorders sums, which are of values near one."""


class Trial:
    """What is found out of one model; each part when it is first asked for."""

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self.graphs: list[fx.GraphModule] = []

    @cached_property
    def model(self) -> nn.Module:
        """The untouched model."""
        return self.specimen.make()

    @cached_property
    def calls(self) -> list[dict[str, Any]]:
        """Keyword arguments of each step."""
        return [self.specimen.inputs(self.model, step) for step in range(STEPS)]

    @cached_property
    def plain(self) -> list[Tensors]:
        """What the untouched model gives at each step."""
        with torch.no_grad():
            return [tensors(self.model(**call)) for call in self.calls]

    @cached_property
    def denoiser(self) -> Any:
        """The model with all sites of both kinds, or with attention alone."""
        return self.transform(("attention", "block"))

    @cached_property
    def denoiser_of_attention(self) -> Any:
        """The model with sites of attention, and of blocks where there are any."""
        try:
            return self.denoiser
        except dqar_fx.SiteError:
            return self.transform("attention")

    @cached_property
    def compiled(self) -> Any:
        """The model with attention as sites, compiled by blocks, by a backend that counts."""

        def count(graph: fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
            self.graphs.append(graph)
            return graph.forward

        return self.transform("attention", compile={"backend": count})

    def transform(self, sites: str | tuple[str, ...], **options: Any) -> Any:
        """A denoiser that is captured already."""
        return dqar_fx.transform(
            self.model,
            dqar_fx.Schedule.compute_all(STEPS),
            sites=sites,
            example_inputs=self.calls[0],
            **options,
        )

    @property
    def tier(self) -> str:
        """How it is captured; a dash if it is not."""
        try:
            explanation = self.denoiser_of_attention.explain()
        except dqar_fx.DqarError:
            return "-"
        return getattr(explanation, "tier", "graph")

    @property
    def kinds(self) -> Counter[str]:
        """Number of sites of each kind, attentions together."""
        sites = self.denoiser_of_attention.explain().sites
        try:  # feed-forwards inside of blocks that are sites are none there
            inside = self.compiled.explain()
            sites = [*inside.sites, *inside.left_out, *(s for s in sites if s.kind == "block")]
        except dqar_fx.DqarError:
            pass
        return Counter("attention" if s.kind in ATTENTION else s.kind for s in sites)

    # ---- runs ----------------------------------------------------------------------------

    def run(self, denoiser: Any) -> list[Tensors]:
        """What a denoiser gives at each step."""
        found = []
        for step, call in enumerate(self.calls):
            with torch.no_grad(), denoiser.cache_context("sample", step_index=step):
                found.append([each.clone() for each in tensors(denoiser(**call))])
        return found

    def reuse(self, denoiser: Any, *kinds: str) -> tuple[Any, list[Tensors], Verdict | None]:
        """A denoiser whose sites of some kinds reuse, and what the oracle gives.

        The verdict is None unless reuse changes nothing, so that nothing could be told.
        """
        sites = denoiser.explain().sites
        reuses = np.zeros((STEPS, len(sites)), bool)
        chosen = [site.index for site in sites if site.kind in kinds]
        for step in range(STEPS):
            reuses[step, chosen] = step % EVERY > 0
        following = denoiser.with_schedule(dqar_fx.Schedule.from_actions(reuses))
        is_residual = {site.path: site.kind == "block" for site in sites}
        oracle = Oracle(self.model, is_residual, self.specimen.streams)
        expected = [
            oracle(actions_of(sites, row), call)
            for row, call in zip(following.table.actions, self.calls, strict=True)
        ]
        blind = same(expected, self.plain)
        return following, expected, Verdict(False, "reuse changes nothing") if blind else None


def actions_of(sites: Any, row: NDArray[np.int8]) -> Mapping[str, int]:
    """What sites that store or reuse do at a step, by their path."""
    acting = (site for site in sites if row[site.index] in (STORE, REUSE))
    return {site.path: int(row[site.index]) for site in acting}


def same(found: list[Tensors], expected: list[Tensors]) -> bool:
    """Whether all steps are equal bit for bit."""
    return count_same(found, expected) == len(expected)


def count_same(found: list[Tensors], expected: list[Tensors], **close: float) -> int:
    """Steps that are equal bit for bit, or close if tolerances are given."""

    def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
        return torch.allclose(one, other, **close) if close else torch.equal(one, other)

    pairs = zip(found, expected, strict=True)
    return sum(all(map(equal, one, other)) for one, other in pairs)


def judge(found: list[Tensors], expected: list[Tensors], word: str) -> Verdict:
    """Whether all steps are equal bit for bit."""
    equal = count_same(found, expected)
    return Verdict(equal == STEPS, word if equal == STEPS else f"{equal} of {STEPS} steps")


# ---- the trials --------------------------------------------------------------------------


def computes(trial: Trial) -> Verdict:
    """A table that computes all gives the untouched model's outputs bit for bit."""
    return judge(trial.run(trial.denoiser_of_attention), trial.plain, "equal")


def reuses_attention(trial: Trial) -> Verdict:
    """Attention that reuses at every other step gives what plain hooks give, bit for bit."""
    denoiser, expected, blind = trial.reuse(trial.denoiser_of_attention, *ATTENTION)
    return blind or judge(trial.run(denoiser), expected, "equal")


def reuses_blocks(trial: Trial) -> Verdict:
    """Blocks that reuse what they add do so, too."""
    denoiser, expected, blind = trial.reuse(trial.denoiser, "block")
    return blind or judge(trial.run(denoiser), expected, "equal")


def compiles(trial: Trial) -> Verdict:
    """Compiled by blocks it gives the same, nearly, and compiles nothing in a second run."""
    denoiser, expected, blind = trial.reuse(trial.compiled, *ATTENTION)
    first, num_graphs = trial.run(denoiser), len(trial.graphs)
    second = trial.run(denoiser)
    if again := len(trial.graphs) - num_graphs:
        return Verdict(False, f"{again} graphs more in a second run")
    close = min(count_same(each, expected, **CLOSE) for each in (first, second))
    if close < STEPS:
        return Verdict(False, f"{close} of {STEPS} steps")
    return blind or Verdict(True, f"{num_graphs} graphs")


TRIALS: dict[str, Callable[[Trial], Verdict]] = {
    "computes": computes,
    "attention": reuses_attention,
    "blocks": reuses_blocks,
    "compiled": compiles,
}
