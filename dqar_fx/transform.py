"""The call that does it all: it checks its arguments and returns a `Denoiser`.

How a model becomes a program is told by `dqar_fx.builder.builder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import nn

from .builder.builder import Builder
from .builder.tiers import WANTED, refuse_with_offload, refuse_without_whole
from .capture.compiled import find_original
from .capture.offloaded import describe_offload
from .capture.patched import refuse_patches
from .conditioning.conditioning import WAYS
from .conditioning.release import PLACES, Residence
from .denoiser.denoiser import Denoiser
from .denoiser.offload import hand_hook_on
from .errors import CaptureError, OptionError, ScheduleError, SiteError, check_known
from .guidance.guidance import Guidance
from .guidance.guided import GuidedDenoiser
from .passes import FORMATS
from .passes.pipeline import check_disable
from .program.compile_options import CompileOptions
from .schedule.schedule import as_schedule

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .schedule.schedule import Schedule

KINDS_KEPT = ("output", "kv")


def transform(
    model: nn.Module,
    schedule: Schedule | str,
    *,
    sites: str | Sequence[str] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    keep: str = "output",
    cache: str = "same",
    compile: str | Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    conditioning: str = "auto",
    release: str | None = None,
    disable: Collection[str] = (),
    capture: str = "auto",
) -> Denoiser:
    """Compile a denoiser so that it reuses attention as a schedule says.

    Args:
        model: A diffusers transformer, or any module whose forward, or whose blocks can be
            exported. It is not modified; parameters are shared with it.
        schedule: Which site reuses its output at which step; or the name of a schedule tier,
            ``"quality"``, ``"balanced"``, ``"fast"`` or ``"fastest"``.
        sites: A kind of `SITE_KINDS` (``"self"``, ``"feed_forward"``, ``"block"``, ...), a
            group of them (``"attention"``; ``"all"`` but blocks and spans), or paths: patterns
            such as ``"transformer_blocks.*.attn1"``, spans such as
            ``"transformer_blocks.1:11"``; or several. By default those that the schedule is
            meant for, or ``"attention"``.
        example_inputs: Keyword arguments of one call, to capture right away; without them
            the first call is captured.
        keep: What a site keeps: its ``"output"``, or its keys and values, ``"kv"``, from which
            reuse computes the output with a fresh query.
        cache: How it is kept: ``"same"`` (the site's own dtype), ``"fp16"``, ``"bf16"``,
            ``"int8"`` (one scale per token), ``"int8-per-channel"``, ``"fp8"``.
        compile: None to run eagerly on any device; ``"regional"`` to compile each distinct
            block once; ``"whole"`` to compile one graph per distinct row; or a dict of
            ``torch.compile`` keywords with an optional ``"unit"`` of these. With
            ``"dynamic": True`` what is compiled serves all sizes, with ``"auto"`` from the
            second one on. With ``"prepack": True`` linears
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
        disable: Exact names of passes to leave out everywhere, such as
            ``("narrow_linears",)``: to see what a pass is good for, or to do without one that
            does harm. Those that the rest cannot do without are refused.
        capture: What is captured: the whole denoiser as one ``"graph"``; its ``"blocks"`` one
            by one, between which the model's own forward runs, with its Python and its
            hooks; or ``"auto"``: the whole where it can be, else the blocks, with a warning
            that says why. Blocks alone have no conditioning ahead, no spans, and no
            ``compile="whole"``.

    Returns:
        A module with the model's forward signature, to be used in its place.

    Raises:
        CaptureError: The model is none, or cannot be captured (now, if ``example_inputs``
            are given).
        SiteError: No attention is found, a pattern selects none, or a span is asked for
            where only blocks are captured.
        ScheduleError: The schedule does not fit the sites, or guidance's do not go with it.
        OptionError: An unknown ``keep``, ``cache``, ``compile``, ``conditioning``,
            ``release``, ``disable`` or ``capture``, or one that blocks alone do not have;
            ``"dynamic"`` or ``"prepack"`` with nothing compiled or with what excludes them; a
            device that lacks the cache's dtype, or nothing to prepack (now, if
            ``example_inputs`` are given).
        DqarError: A library has put something around the model that is in no capture, such
            as hooks of offload with ``capture="graph"``.

    Source:
        DQAR report, sections "Phase 1: K/V caching", "Phase 2: attention output caching" and
        "Layer scheduling".
    """
    check_model(model)
    schedule = as_schedule(schedule)
    if sites is None:
        sites = "attention" if schedule.sites is None else schedule.sites
    if not (isinstance(sites, Iterable) and sites and all(isinstance(s, str) for s in sites)):
        raise SiteError(f"sites={sites!r}: expected a kind, a path pattern, or several")
    check_known("cache=", cache, FORMATS)
    check_known("keep=", keep, KINDS_KEPT)
    schedule.refuse_other_model(model)
    options = CompileOptions.of(compile, check_disable(disable))
    way, residence = read_conditioning(conditioning, release)
    wanted = check_known("capture=", capture, WANTED)
    if wanted == "blocks":
        refuse_without_whole(sites, way, options)
    offload = describe_offload(find_original(model))
    if offload and wanted != "graph":
        refuse_without_whole(sites, way, options, offload if wanted == "auto" else "")
        refuse_with_offload(find_original(model), options, offload)
    refuse_patches(find_original(model), moving=wanted != "graph")
    builder = Builder(schedule, sites, keep, FORMATS[cache], way=way, wanted=wanted)
    if guidance is None:
        denoiser = Denoiser(model, builder, options, residence)
    else:
        check_guidance(guidance, sites)
        builder = builder.with_other(guidance.unconditional)
        denoiser = GuidedDenoiser(model, builder, options, schedule, guidance, residence)
    hand_hook_on(find_original(model), denoiser)
    if example_inputs is not None:
        denoiser.prepare(**check_example(example_inputs, model))
    return denoiser


def read_conditioning(conditioning: object, release: object) -> tuple[str, Residence]:
    """When conditioning is evaluated, and where its parameters are.

    Raises:
        OptionError: One of the arguments is unknown, or they do not go together.
    """
    way = check_known("conditioning=", conditioning, WAYS)
    place = check_known("release=", release, (None, *PLACES))
    if place is not None and way == "step":
        raise OptionError(
            f"release={place!r} with conditioning='step': every step needs the parameters. "
            "Expected conditioning='trajectory' or 'auto', or release=None"
        )
    return way if place is None else "trajectory", Residence(place)


def check_model(model: object) -> None:
    """Raise for what is no model, or transformed already."""
    if isinstance(model, nn.Module) and isinstance(find_original(model), Denoiser):
        raise CaptureError(
            "the model is transformed already; for another schedule of it use "
            "denoiser.with_schedule(schedule)"
        )
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"expected an nn.Module, found {type(model).__name__}; of a pipeline give "
            "pipe.transformer"
        )


def check_example(example_inputs: object, model: nn.Module) -> Mapping[str, Any]:
    """Raise for example inputs that are no keyword arguments of the model's forward."""
    if not isinstance(example_inputs, Mapping):
        raise CaptureError(
            f"example_inputs: expected a dict of keyword arguments of one call, found "
            f"{type(example_inputs).__name__}"
        )
    try:
        signature(model.forward).bind(**example_inputs)
    except TypeError as error:
        raise CaptureError(
            f"example_inputs do not fit the forward of {type(model).__name__}: {error}. "
            f"Found {', '.join(map(str, example_inputs)) or 'nothing'}; expected arguments of "
            f"{', '.join(signature(model.forward).parameters)}"
        ) from None
    return example_inputs


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
