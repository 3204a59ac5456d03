"""A probe: stands in for a program, computes every step, and looks at its attention.

Beside the step itself, it compares each site's output with those of earlier steps. For some
cells (step, site, age) it runs the step again with that one reuse, to see what that does to
the denoiser's output.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dqar_fx.builder.choose_sites import choose_sites
from dqar_fx.capture.inputs import Roles
from dqar_fx.conditioning.conditioning import Ahead
from dqar_fx.passes import (
    FORMATS,
    NoMatch,
    compute_or_reuse,
    expose_attention,
    find_sites,
    insert_guards,
    keep_keys_values,
)
from dqar_fx.passes.pipeline import BEFORE_LOOKING_AT_SITES
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.passes.support.runner import fork, run_pass, run_passes
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import fx

    from dqar_fx.capture.capture import Capture
    from dqar_fx.passes.support.module_sites import Match
    from dqar_fx.steps.steps import Position

    Tensors = Sequence[torch.Tensor]
    Changes = Mapping[int, torch.Tensor]


class Notebook(Protocol):
    """Where a probe writes what it sees; it also says what to try."""

    def note_sites(self, sites: tuple[str, ...]) -> None:
        """Which sites a probe looks at."""

    def note_step(
        self, step: int, stream: object, entropy: Tensors, change: Sequence[Changes]
    ) -> None:
        """What a step gave: per site its entropy, per site and age its change."""

    def note_cell(self, step: int, site: int, age: int, errors: tuple[float, ...]) -> None:
        """What a reuse did: errors as `calibration.Cells` has them."""

    def choose_cells(self, num_sites: int, known: Sequence[int]) -> list[tuple[int, int]]:
        """``(site, age)`` of the reuses to try, of ages that are known."""


@dataclass(frozen=True)
class Kept:
    """What one site gave at one step."""

    outputs: Tensors
    keys_values: Tensors


@dataclass
class Past:
    """What one stream kept at its last steps, by step."""

    steps: dict[int, list[Kept]] = field(default_factory=dict)
    trajectory: object = None


@dataclass(frozen=True)
class Tried:
    """A guarded graph on which single sites are reused.

    Attributes:
        gm: Maps the denoiser's inputs, actions and slots to its outputs, then all sites'.
        num_outputs: How many of these are the denoiser's.
        spans: Per site, where its outputs stand among the rest.
    """

    gm: fx.GraphModule
    num_outputs: int
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule, matches: Sequence[Match]) -> Tried:
        """Guard the matches of a graph, which is edited."""
        run_pass(gm, partial(insert_guards, matches=matches, cache=FORMATS["same"]))
        outputs = graph_outputs(gm.graph)
        guards = gm.graph.find_nodes(op="call_function", target=compute_or_reuse)
        given = [list(guard.users) for guard in guards]
        gm.graph.output_node().args = ((*outputs, *(n for each in given for n in each)),)
        gm.recompile()
        return cls(gm, len(outputs), tuple(spans_of(len(outputs), map(len, given))))

    def run(self, leaves: Sequence[Any], site: int, kept: Tensors) -> tuple[Tensors, Tensors]:
        """The denoiser's outputs and the site's, with that one site reused."""
        buffers, extra = iter(kept), list[Any]()
        for node in self.gm.graph.find_nodes(op="placeholder")[len(leaves) :]:
            if "action" in node.meta:
                is_reused = node.meta["action"] == site
                extra.append(Action.REUSE if is_reused else Action.COMPUTE)
            else:
                extra.append(next(buffers) if node.meta["slot"][0] == site else None)
        values = self.gm(*leaves, *extra)
        return values[: self.num_outputs], values[self.spans[site]]


class Probe:
    """Looks at one input signature of a denoiser.

    Args:
        captured: The model as a graph.
        sites: As given to ``transform``.
        num_steps: Steps of the trajectory.
        max_age: How far back to compare.
        compare_kv: Whether to try kept keys and values, too.
        notebook: Where to write.
    """

    def __init__(
        self,
        captured: Capture,
        *,
        sites: str | Sequence[str],
        num_steps: int,
        max_age: int,
        compare_kv: bool,
        notebook: Notebook,
    ) -> None:
        self.captured = captured
        self.roles = Roles.of(captured.gm)
        self.ahead = Ahead("step", is_compiled=False)
        gm, matches = prepared(captured.gm, sites)
        self.table = Schedule.compute_all(num_steps).resolve([m.site.path for m in matches])
        keys_values = [key_value_match(match) if compare_kv else None for match in matches]
        both = [
            match if other is None else join_kept(match, other)
            for match, other in zip(matches, keys_values, strict=True)
        ]
        self._num_outputs = len(graph_outputs(gm.graph))
        run_pass(gm, partial(expose_attention, matches=both))
        self._observed, self._matches, self._keys_values = gm, matches, keys_values
        self._tried = Tried.of(*prepared(captured.gm, sites))
        self._tried_kv = self._try_kv(captured.gm, sites) if any(keys_values) else None
        self._max_age, self._notebook = max_age, notebook
        notebook.note_sites(self.table.sites)
        self._past: dict[object, Past] = {}

    def _try_kv(self, gm: fx.GraphModule, sites: str | Sequence[str]) -> Tried:
        own, matches = prepared(gm, sites)
        return Tried.of(own, [key_value_match(match) or match for match in matches])

    def reset(self) -> None:
        """Forget the steps before."""
        self._past.clear()

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """One step, as the original computes it; what it shows is written down."""
        past = self._past.get(position.stream)
        if past is None or past.trajectory is not position.trajectory:
            past = self._past[position.stream] = Past(trajectory=position.trajectory)
        past.steps = {
            s: k for s, k in past.steps.items() if position.step - s <= self._max_age
        }
        values = self._observed(*leaves)
        outputs, (kept, entropy) = values[: self._num_outputs], self._split(values)
        change = [
            {
                position.step - step: relative(now.outputs, old[site].outputs)
                for step, old in past.steps.items()
            }
            for site, now in enumerate(kept)
        ]
        self._notebook.note_step(position.step, position.stream, entropy, change)
        for site, age in self._notebook.choose_cells(len(kept), sorted(change[0])):
            old = past.steps[position.step - age][site]
            errors = self._try(leaves, outputs, kept, site, old)
            self._notebook.note_cell(position.step, site, age, errors)
        past.steps[position.step] = kept
        return list(outputs)

    def _split(self, values: Tensors) -> tuple[list[Kept], list[torch.Tensor]]:
        """Per site what it kept, and its entropy, from the outputs that were added."""
        rest = iter(values[self._num_outputs :])
        kept, entropy = list[Kept](), list[torch.Tensor]()
        for match, other in zip(self._matches, self._keys_values, strict=True):
            outputs = [next(rest) for _ in match.outputs]
            kept.append(Kept(outputs, [next(rest) for _ in (other.kept if other else ())]))
            entropy.append(next(rest))
        return kept, entropy

    def _try(
        self,
        leaves: Sequence[Any],
        outputs: Tensors,
        kept: Sequence[Kept],
        site: int,
        old: Kept,
    ) -> tuple[float, float, float]:
        """The errors of reusing one site's output, and its keys and values."""
        found, _ = self._tried.run(leaves, site, old.outputs)
        error = relative(outputs, found).item()
        if self._tried_kv is None or not old.keys_values:
            return error, float("nan"), float("nan")
        found, given = self._tried_kv.run(leaves, site, old.keys_values)
        return (
            error,
            relative(outputs, found).item(),
            relative(kept[site].outputs, given).item(),
        )


def prepared(
    gm: fx.GraphModule, sites: str | Sequence[str]
) -> tuple[fx.GraphModule, list[Match]]:
    """A fork of a captured graph with the sites that ``transform`` would find."""
    own = fork(gm)
    run_passes(own, BEFORE_LOOKING_AT_SITES)
    matches, near_misses = find_sites(own, [sites] if isinstance(sites, str) else sites)
    return own, choose_sites(matches, near_misses, sites)


def key_value_match(match: Match) -> Match | None:
    """The match with its keys and values kept; None where it computes none."""
    try:
        return keep_keys_values(match)
    except NoMatch:
        return None


def join_kept(match: Match, other: Match) -> Match:
    """The match with both kept."""
    return replace(match, kept=(*match.kept, *other.kept))


def spans_of(start: int, sizes: Iterable[int]) -> Iterable[slice]:
    """Slices of these sizes, one after another."""
    for size in sizes:
        yield slice(start, start + size)
        start += size


def relative(right: Tensors, other: Tensors) -> torch.Tensor:
    """Norm of a difference by the norm of what is right, over several tensors."""
    difference = [a.float() - b.float() for a, b in zip(right, other, strict=True)]
    return norm_of(difference) / norm_of(right).clamp(min=torch.finfo(torch.float32).tiny)


def norm_of(tensors: Tensors) -> torch.Tensor:
    """Euclidean norm of all values."""
    norms = [torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]
    whole: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole
