"""The call that does it all, and the way of the data from a model to a program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from .build.cache_support import refuse_format
from .build.choose_sites import choose_sites
from .build.dumps import open_dump
from .capture.capture import capture
from .conditioning.conditioning import check_way
from .conditioning.release import Residence, check_place
from .denoiser.denoiser import Denoiser
from .errors import CaptureError, OptionError, ScheduleError, SiteError
from .guidance.guidance import Guidance
from .guidance.guided import GuidedDenoiser
from .passes import (
    FORMATS,
    CacheFormat,
    NoMatch,
    find_around,
    find_sites,
    hoist_conditioning,
    insert_guards,
    keep_keys_values,
    merge_equal_parameters,
    normalise,
    outline_regions,
    unify_layouts,
)
from .passes.find_attention import is_candidate
from .passes.support.blocks import find_blocks
from .passes.support.runner import fork, ignore, run_passes
from .plan.plan import make_plan
from .program.compile_options import CompileOptions
from .program.explanation import Explanation
from .program.lowering import Lowering
from .program.program import Program
from .schedule.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import fx

    from .passes import Site
    from .passes.support.module_sites import Match
    from .passes.support.runner import Observer, PassReport

KINDS_KEPT = ("output", "kv")


def transform(
    model: nn.Module,
    schedule: Schedule,
    *,
    sites: str | Sequence[str] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    keep: str = "output",
    cache: str = "same",
    compile: str | Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    conditioning: str = "auto",
    release: str | None = None,
) -> Denoiser:
    """Compile a denoiser so that it reuses attention as a schedule says.

    Args:
        model: A diffusers transformer, or any module whose forward can be exported. It is
            not modified; parameters are shared with it.
        schedule: Which site reuses its output at which step.
        sites: ``"attention"``, a kind (``"self"``, ``"cross"``, ``"joint"``,
            ``"feed_forward"``), ``"all"`` of these, ``"block"`` or ``"span"`` (what a block,
            or all blocks of a list, add to their input), or paths: patterns such as
            ``"transformer_blocks.*.attn1"``, spans such as ``"transformer_blocks.1:11"``; or
            several. By default those that the schedule is meant for, or ``"attention"``.
        example_inputs: Keyword arguments of one call, to capture right away; without them
            the first call is captured.
        keep: What a site keeps: its ``"output"``, or its keys and values, ``"kv"``, from which
            reuse computes the output with a fresh query.
        cache: How it is kept: ``"same"`` (the site's own dtype), ``"fp16"``, ``"bf16"``,
            ``"int8"`` (one scale per token), ``"int8-per-channel"``, ``"fp8"``.
        compile: None to run eagerly on any device; ``"regional"`` to compile each distinct
            block once; ``"whole"`` to compile one graph per distinct row; or a dict of
            ``torch.compile`` keywords with an optional ``"unit"`` of these. With
            ``"dynamic": True`` what is compiled serves all batch sizes; the first call is then
            captured a second time, with twice its samples. With ``"prepack": True`` linears
            of the step take copies of their weights that oneDNN packed once (float32 on a
            CPU): faster, for the bytes of the copies (``Denoiser.memory``).
        guidance: What the unconditional stream does apart from the conditional one; None if
            all streams do the same, or there is one.
        conditioning: When what reads the timestep but not the latent is evaluated: at each
            ``"step"``, bit for bit as the original does in eager mode; for the whole
            ``"trajectory"`` at once where its timesteps are known (rounding as a product of
            more rows does); or ``"auto"``, which is the latter where something is compiled
            and it takes 256 MiB at most.
        release: Where parameters that serve the conditioning alone go while a trajectory's
            steps do not need them: ``"host"`` memory, a temporary file on ``"disk"``, or
            None to leave them. It implies ``conditioning="trajectory"``.

    Returns:
        A module with the model's forward signature, to be used in its place.

    Raises:
        CaptureError: The model is none, or cannot be captured (now, if ``example_inputs``
            are given).
        SiteError: No attention is found, or a pattern selects none.
        ScheduleError: The schedule does not fit the sites, or guidance's do not go with it.
        OptionError: An unknown ``keep``, ``cache``, ``compile``, ``conditioning`` or
            ``release``, ``"dynamic"`` or ``"prepack"`` with nothing compiled or with what
            excludes them; a device that lacks the cache's dtype, or nothing to prepack
            (now, if ``example_inputs`` are given).

    Source:
        DQAR report, sections "Phase 1: K/V caching", "Phase 2: attention output caching" and
        "Layer scheduling".
    """
    check_model(model)
    if not isinstance(schedule, Schedule):
        raise ScheduleError(
            f"expected a dqar_fx.Schedule, found {schedule!r}; for a written-out one use "
            "Schedule.from_actions(...)"
        )
    if sites is None:
        sites = "attention" if schedule.sites is None else schedule.sites
    if not sites or not all(isinstance(s, str) for s in sites):
        raise SiteError(f"sites={sites!r}: expected a kind, a path pattern, or several")
    if not isinstance(cache, str) or cache not in FORMATS:
        raise OptionError(f"cache={cache!r} is unknown; known are {', '.join(FORMATS)}")
    if keep not in KINDS_KEPT:
        raise OptionError(f"keep={keep!r} is unknown; known are {', '.join(KINDS_KEPT)}")
    schedule.refuse_other_model(model)
    options = CompileOptions.of(compile)
    way, residence = read_conditioning(conditioning, release)
    builder = Builder(schedule, sites, keep, FORMATS[cache], way=way)
    if guidance is None:
        denoiser = Denoiser(model, builder, options, residence)
    else:
        check_guidance(guidance, sites)
        builder = builder.with_other(guidance.unconditional)
        denoiser = GuidedDenoiser(model, builder, options, schedule, guidance, residence)
    if example_inputs is not None:
        denoiser.prepare(**example_inputs)
    return denoiser


def read_conditioning(conditioning: object, release: object) -> tuple[str, Residence]:
    """When conditioning is evaluated, and where its parameters are.

    Raises:
        OptionError: One of the arguments is unknown, or they do not go together.
    """
    way, place = check_way(conditioning), check_place(release)
    if place is not None and way == "step":
        raise OptionError(
            f"release={place!r} with conditioning='step': every step needs the parameters. "
            "Expected conditioning='trajectory' or 'auto', or release=None"
        )
    return way if place is None else "trajectory", Residence(place)


def check_model(model: object) -> None:
    """Raise for what is no model, or transformed already."""
    if isinstance(model, Denoiser):
        raise CaptureError(
            "the model is transformed already; for another schedule of it use "
            "denoiser.with_schedule(schedule)"
        )
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"expected an nn.Module, found {type(model).__name__}; of a pipeline give "
            "pipe.transformer"
        )


def check_guidance(guidance: object, sites: str | Sequence[str]) -> None:
    """Raise for what is no guidance, or is meant for other sites."""
    if not isinstance(guidance, Guidance):
        raise ScheduleError(f"guidance={guidance!r}: expected a dqar_fx.Guidance, or None")
    meant = None if guidance.unconditional is None else guidance.unconditional.sites
    if meant is not None and meant != sites:
        raise ScheduleError(
            f"guidance unconditional is a schedule for sites={meant!r}, but the denoiser's "
            f"are {sites!r}. Both streams have the same sites: give transform sites= that "
            "both schedules are good for, and replace(schedule, sites=None)"
        )


@dataclass(frozen=True)
class Builder:
    """Builds a program for each input signature of a denoiser.

    Attributes:
        schedule: Of the program.
        sites: As for `transform`.
        keep: As for `transform`.
        cache: The storage format.
        other: A schedule that its graphs must be able to follow as well.
        way: When conditioning is evaluated, as for `transform`.
    """

    schedule: Schedule
    sites: str | Sequence[str]
    keep: str
    cache: CacheFormat
    other: Schedule | None = None
    way: str = "auto"

    def with_schedule(self, schedule: Schedule) -> Builder:
        """The same for another schedule."""
        return replace(self, schedule=schedule)

    def with_other(self, other: Schedule | None) -> Builder:
        """The same with another second schedule."""
        return replace(self, other=other)

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
    ) -> Program:
        """The way of the data, from a model and the inputs of one call."""
        captured = capture(model, args, kwargs)
        blocks = find_blocks(captured.gm.graph.nodes)
        observe, observe_regions = open_dump(type(model).__name__)
        observe("captured", type(model).__name__, captured.gm)

        graph = fork(captured.gm)
        reports = run_passes(graph, early_passes(options, blocks), observe=observe)
        wanted = [self.sites] if isinstance(self.sites, str) else self.sites
        matches, near_misses = find_sites(graph, spans=wanted)
        if self.keep == "kv":
            matches, without = keep_all_keys_values(matches)
            near_misses += without
        chosen = choose_sites(matches, near_misses, self.sites)
        refuse_format(self.cache, (spec for match in chosen for spec in match.site.kept))
        paths = [match.site.path for match in chosen]
        around = find_around(chosen)
        table = self.schedule.resolve(paths, around=around)
        other = table if self.other is None else self.other.resolve(paths, around=around)
        history = max(table.history, other.history)

        guarded = graph
        reports += run_passes(
            guarded,
            [partial(insert_guards, matches=chosen, cache=self.cache, history=history)],
            observe=observe,
        )
        outlined = fork(guarded)
        reports += outline(outlined, () if options.unit == "whole" else blocks, observe)
        near_misses += hoisted_attention(outlined)
        return Program(
            captured=captured,
            guarded=guarded,
            plan=make_plan(outlined),
            table=table,
            lowering=Lowering(options, observe_regions),
            explanation=Explanation(
                sites=tuple(match.site for match in chosen),
                left_out=left_out(matches, chosen),
                near_misses=tuple(near_misses),
                reports=tuple(reports),
            ),
            conditioning=self.way,
        )


def early_passes(options: CompileOptions, blocks: Sequence[str]) -> list[Any]:
    """Passes before matching, in order."""
    passes: list[Any] = [
        normalise,  # first: the matchers below need not know what does nothing
        merge_equal_parameters,  # before hoisting, which merges what this makes equal
        hoist_conditioning,  # before matching: what is hoisted is no site's to compute
    ]
    if options.unit is not None:
        passes.append(partial(unify_layouts, blocks=blocks))  # last: for compilers only
    return passes


def left_out(matches: Sequence[Match], chosen: Sequence[Match]) -> tuple[Site, ...]:
    """Sites that were not chosen; not those around or inside of a chosen one."""
    paths, taken = {m.site.path for m in chosen}, {n for m in chosen for n in m.body}
    others = (m for m in matches if m.site.path not in paths)
    return tuple(m.site for m in others if not (m.bases or taken.intersection(m.body)))


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
    """Outline the conditioning's stages, each inside, then the step."""
    cut = partial(outline_regions, blocks=blocks)
    reports: list[PassReport] = []
    for call in gm.graph.find_nodes(op="call_module", sort=True):
        stage = fork(gm.get_submodule(str(call.target)))  # type: ignore[arg-type]
        setattr(gm, str(call.target), stage)
        call.meta["graph"] = fork(stage)
        reports += run_passes(stage, [cut], str(call.target), observe)
    return reports + run_passes(gm, [cut], observe=observe)
