"""Builds programs: the way of the data from a model and the inputs of one call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dqar_fx.notices import Once
from dqar_fx.passes import (
    CacheFormat,
    NoMatch,
    find_around,
    find_sites,
    insert_guards,
    keep_keys_values,
    outline_regions,
)
from dqar_fx.passes.pipeline import AFTER_SITES, ON_REGIONS, select_before_sites, select_passes
from dqar_fx.passes.support.attention_spellings import is_candidate
from dqar_fx.passes.support.runner import fork, ignore, over_same_graph, run_passes
from dqar_fx.plan.plan import make_plan
from dqar_fx.program.explanation import Explanation
from dqar_fx.program.fitting import count_kept, table_before_run
from dqar_fx.program.graphs import Graphs
from dqar_fx.program.lowering import Lowering

from .cache_support import refuse_format
from .choose_sites import choose_sites
from .dumps import open_dump
from .tiers import capture_best, refuse_without_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx, nn

    from dqar_fx.passes import Site
    from dqar_fx.passes.support.module_sites import Match
    from dqar_fx.passes.support.runner import Observer, PassReport
    from dqar_fx.program.compile_options import CompileOptions
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.schedule import Schedule


@dataclass(frozen=True)
class Builder:
    """Builds a program for each input signature of a denoiser.

    Attributes:
        schedule: What the program's sites do at each step.
        sites: Which sites take part, as `transform` takes it.
        keep: What a site keeps, as `transform` takes it.
        cache: The storage format.
        other: A schedule that its graphs must be able to follow as well.
        way: When conditioning is evaluated, as `transform` takes it.
        wanted: What is captured, as `transform` takes ``capture``.
        once: Warns where the best tier does not fit.
    """

    schedule: Schedule
    sites: str | Sequence[str]
    keep: str
    cache: CacheFormat
    other: Schedule | None = None
    way: str = "auto"
    wanted: str = "auto"
    once: Once = field(default_factory=Once, compare=False, repr=False)

    def with_schedule(self, schedule: Schedule) -> Builder:
        """A builder of programs for another schedule."""
        return replace(self, schedule=schedule)

    def with_other(self, other: Schedule | None) -> Builder:
        """A builder of programs with another second schedule."""
        return replace(self, other=other)

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """All schedules that its graphs must be able to follow."""
        return (self.schedule,) if self.other is None else (self.schedule, self.other)

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
        *,
        symbolic: bool = False,
    ) -> Program:
        """Build a program from a model and the inputs of one call.

        Args:
            model: The model.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            options: How to lower.
            symbolic: Whether the capture is to be for all shapes that it can be for.
        """
        disable, compiled = options.disable, options.backend.is_compiled
        captured = capture_best(
            model, args, kwargs, options, self.wanted, self.once, symbolic=symbolic
        )
        if captured.blocks is not None:
            refuse_without_whole(self.sites, self.way, options, captured.why)
        blocks = captured.find_blocks()
        observe, observe_regions = open_dump(type(model).__name__)
        observe("captured", type(model).__name__, captured.capture.gm)

        graph = fork(captured.capture.gm)
        early = select_before_sites(compiled=compiled, blocks=blocks, disable=disable)
        reports = run_passes(graph, early, observe=observe)
        wanted = [self.sites] if isinstance(self.sites, str) else self.sites
        matches, near_misses = find_sites(graph, spans=wanted, disable=disable)
        if captured.blocks is not None:  # what is between two blocks is in no graph
            matches = [match for match in matches if not match.is_across_blocks]
        if self.keep == "kv":
            matches, without = keep_all_keys_values(matches)
            near_misses += without
        chosen = choose_sites(matches, near_misses, self.sites)
        refuse_format(self.cache, (spec for match in chosen for spec in match.site.kept))
        paths = [match.site.path for match in chosen]
        around = find_around(chosen)
        table = table_before_run(self.schedule, paths, around, self.cache)
        history = max(count_kept(each, paths, around) for each in self.schedules)

        bound = {"matches": chosen, "cache": self.cache, "history": history}
        late = select_passes(AFTER_SITES, disable, {insert_guards: bound})
        reports += run_passes(graph, late, observe=observe)
        outlined = over_same_graph(graph)
        reports += outline(outlined, blocks if options.backend.cuts_blocks else (), observe)
        near_misses += hoisted_attention(outlined)
        return captured.make_program(
            model,
            args,
            kwargs,
            graphs=Graphs(captured.capture, graph, make_plan(outlined), compiled, self.cache),
            table=table,
            lowering=Lowering(options, observe_regions),
            explanation=Explanation(
                sites=tuple(match.site for match in chosen),
                left_out=left_out(matches, chosen),
                near_misses=tuple(near_misses),
                reports=tuple(reports),
                disabled=disable,
                reads=captured.reads,
                tier=captured.tier,
                why_tier=captured.why,
                uncaptured=captured.left,
                offload=captured.offload,
            ),
            conditioning=self.way,
            schedule=self.schedule,
        )


def left_out(matches: Sequence[Match], chosen: Sequence[Match]) -> tuple[Site, ...]:
    """Sites not chosen; of those around or inside of a chosen one only a UNet's levels."""
    paths, taken = {m.site.path for m in chosen}, {n for m in chosen for n in m.body}
    others = (m for m in matches if m.site.path not in paths)
    return tuple(
        m.site
        for m in others
        if m.site.variant == "whole" or not (m.bases or taken.intersection(m.body))
    )


def keep_all_keys_values(matches: Sequence[Match]) -> tuple[list[Match], list[NoMatch]]:
    """Matches that keep their keys and values, and those that have none to keep."""
    kept, without = [], []
    for match in matches:
        try:
            kept.append(keep_keys_values(match))
        except NoMatch as miss:
            without.append(miss)
    return kept, without


def hoisted_attention(gm: fx.GraphModule) -> list[NoMatch]:
    """Attention that does not read the latent: no site, since it is evaluated rarely."""
    reason = "attention that does not depend on the latent: evaluated with the conditioning"
    stages = [n.meta["graph"] for n in gm.graph.nodes if "graph" in n.meta]
    return [
        NoMatch(reason, node) for s in stages for node in s.graph.nodes if is_candidate(node)
    ]


def outline(
    gm: fx.GraphModule, blocks: Sequence[str], observe: Observer = ignore
) -> list[PassReport]:
    """Outline the conditioning's stages, each inside, then the step.

    The graphs stay as they are: ``gm`` is given others.
    """
    passes = select_passes(ON_REGIONS, options={outline_regions: {"blocks": blocks}})
    reports: list[PassReport] = []
    stages: dict[str, Any] = {}
    for call in gm.graph.find_nodes(op="call_module", sort=True):
        name = str(call.target)
        stages[name] = gm.get_submodule(name)
        stage = over_same_graph(stages[name])
        setattr(gm, name, stage)
        reports += run_passes(stage, passes, name, observe)
    reports += run_passes(gm, passes, observe=observe)
    for call in gm.graph.find_nodes(op="call_module"):
        if call.target in stages:
            call.meta["graph"] = stages[str(call.target)]
    return reports
