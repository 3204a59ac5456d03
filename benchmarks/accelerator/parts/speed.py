"""Speed against the compiled untransformed model: paired, in turn, by the device's clock."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import dqar_fx
from benchmarks.accelerator.cases import Case, Finding, Stage
from benchmarks.accelerator.race import Pairs, count_launches, race
from benchmarks.accelerator.scales import Scale
from benchmarks.accelerator.subjects import Subject, make_dit, make_flux, make_wan
from dqar_fx import Denoiser, Schedule, prior_art
from dqar_fx.costs.profile import DATASHEETS

MODES: dict[str, dict[str, str]] = {
    "default": {},
    "graphs": {"mode": "reduce-overhead"},
    "autotuned": {"mode": "max-autotune-no-cudagraphs"},
    "autotuned, graphs": {"mode": "max-autotune"},
}
"""How both models are compiled, as keywords of ``torch.compile``."""
NEEDS = {name: ("compiles", "graphs") if "graphs" in name else ("compiles",) for name in MODES}


@dataclass(frozen=True)
class Setting:
    """What a transformed model does.

    Attributes:
        schedule: Makes the schedule of a number of steps.
        sites: What is reused.
        cache: How it is kept.
    """

    schedule: Callable[[int], Schedule]
    sites: str = "attention"
    cache: str = "same"


def reuse_all(steps: int) -> Schedule:
    """Everything is computed at the first step, and reused at all others."""
    return Schedule.from_actions("S" + "R" * (steps - 1))


def reuse_second(steps: int) -> Schedule:
    """Every second step stores, so that storing shows."""
    return Schedule.interval(steps, 2)


def forecast(order: int, steps: int) -> Schedule:
    """Every third step computes; the others are forecast."""
    return Schedule.interval(steps, 3, warmup=2).forecast(order)


REPORTED = "attention, 98 % reused"
SETTINGS: dict[str, Setting] = {
    REPORTED: Setting(reuse_all),
    "all computed": Setting(Schedule.compute_all),
    "attention, every 2nd": Setting(reuse_second),
    "attention, every 2nd, int8": Setting(reuse_second, cache="int8"),
    "attention, every 2nd, bf16": Setting(reuse_second, cache="bf16"),
    "FORA 3": Setting(prior_art.fora, "all"),
    "forecast of order 1": Setting(partial(forecast, 1), "all"),
    "forecast of order 2": Setting(partial(forecast, 2), "all"),
    "blocks, every 3rd": Setting(lambda steps: Schedule.interval(steps, 3), "block"),
    "span, every 3rd": Setting(lambda steps: Schedule.interval(steps, 3), "span"),
}
BASE_DIT = "DiT-XL/2-256"


SAMPLED = ("attention, every 2nd, int8", "span, every 3rd")
"""Settings that a rehearsal takes."""


def list_question(scale: Scale) -> list[Case]:
    """The report's question, plainly and with CUDA graphs; then other batches, and tuned."""
    first, *others = scale.batches
    plain, tuned = (list(MODES)[:2], list(MODES)[2:])
    if scale.is_sample:
        plain, tuned = plain[:1], tuned[-1:]
    asked = [(batch, mode) for batch in (first, *others) for mode in plain]
    asked += [(first, mode) for mode in tuned]
    return [make_case(scale, BASE_DIT, b, REPORTED, mode, "report") for b, mode in asked]


def list_cases(scale: Scale) -> list[Case]:
    """Settings on the report's model, then other models; then both with CUDA graphs."""
    names = SAMPLED if scale.is_sample else [n for n in SETTINGS if n != REPORTED]
    asked = [(BASE_DIT, scale.batches[0], name) for name in names]
    both = (REPORTED, "forecast of order 2")[: 1 if scale.is_sample else None]
    for model, batch in (("DiT-XL/2-512", 2), ("flux", 1), ("wan", 1)):
        asked += [(model, batch, name) for name in both]
    modes = ("default",) if scale.is_sample else ("default", "graphs")
    return [make_case(scale, *each, mode, "ceiling") for mode in modes for each in asked]


def make_case(
    scale: Scale, model: str, batch: int, setting: str, mode: str, claim: str
) -> Case:
    """One pair of a compiled model and its transformed twin."""
    name = f"{model}, batch {batch}: {setting} ({mode})"
    needs = NEEDS[mode] if scale.keywords is None else ()
    return Case(name, claim, partial(measure, model, batch, setting, mode), needs)


def measure(model: str, batch: int, setting: str, mode: str, stage: Stage) -> Finding:
    """Race the compiled untransformed model and its transformed twin."""
    keywords = stage.scale.in_mode(MODES[mode])
    subject = find_subject(stage, model, batch)
    base = find_base(stage, subject, keywords)
    own = SETTINGS[setting]
    steps = stage.scale.steps
    denoiser = find_denoiser(stage, subject, own, keywords)
    pairs = race(stage, subject, base, denoiser, steps)
    values = pairs.describe(steps) | describe_reuse(denoiser, pairs, steps)
    values |= describe_launches(stage, subject, base, denoiser, steps, values)
    word = (
        f"{values['speed']:.3f}x ({values['speed_low']:.3f}-{values['speed_high']:.3f}), "
        f"ceiling {values['ceiling']:.3f}x"
    )
    values |= {"model": model, "batch": batch, "setting": setting, "mode": mode}
    return Finding(None, word, values)


def find_subject(stage: Stage, model: str, batch: int) -> Subject:
    """The model on the device; the one before it is let go of."""

    def make() -> Subject:
        if model == "flux":
            return make_flux(stage.scale, stage.device, batch)
        if model == "wan":
            return make_wan(stage.scale, stage.device, batch)
        geometry = replace(stage.scale.dit[model], batch=batch)
        return make_dit(model, geometry, stage.device, stage.scale.dtype)

    if ("subject", model, batch) not in stage.made:
        stage.clear()
    found: Subject = stage.once(("subject", model, batch), make)
    return found


def find_base(stage: Stage, subject: Subject, keywords: dict[str, Any]) -> Any:
    """The compiled untransformed model, one for each way to compile it."""

    def make() -> Any:
        compiled: Any = torch.compile
        return compiled(subject.model, fullgraph=True, dynamic=False, **keywords)

    return stage.once(("base", *keywords.items()), make)


def find_denoiser(
    stage: Stage, subject: Subject, own: Setting, keywords: dict[str, Any]
) -> Denoiser:
    """The transformed model; those of equal sites and formats share what is captured."""
    sites = name_span(subject) if own.sites == "span" else own.sites
    schedule = own.schedule(stage.scale.steps)

    def make() -> Denoiser:
        return dqar_fx.transform(
            subject.model,
            schedule,
            sites=sites,
            cache=own.cache,
            compile={"unit": "regional", **keywords},
            example_inputs=next(subject.calls(1)),
        )

    made: Denoiser = stage.once((sites, own.cache, *keywords.items()), make)
    return made.with_schedule(schedule)


def name_span(subject: Subject) -> str:
    """All blocks of a stack but its first and last, as one site."""
    blocks: Any = subject.model.transformer_blocks
    return f"transformer_blocks.{1 if len(blocks) > 2 else 0}:{max(len(blocks) - 1, 2)}"


def describe_reuse(denoiser: Denoiser, pairs: Pairs, steps: int) -> dict[str, Any]:
    """What the table promises by arithmetic, and what datasheets predict."""
    reports = {name: denoiser.report(device=name) for name in DATASHEETS}
    report = next(iter(reports.values()))
    own_ms = 1e3 * min(took.device_s for took in pairs.own)
    speed = pairs.describe(steps)["speed"]
    return {
        "reuse_ratio": denoiser.table.reuse_ratio,
        "ceiling": report.ceiling,
        "of_ceiling": speed / report.ceiling,
        "cache_bytes": denoiser.cache_bytes,
        "predicted": {name: each.ms / own_ms for name, each in reports.items()},
    }


def describe_launches(
    stage: Stage,
    subject: Subject,
    base: Any,
    denoiser: Denoiser,
    steps: int,
    values: dict[str, Any],
) -> dict[str, Any]:
    """Kernels and gaps between them, per step, where a profiler can see them."""
    if not stage.abilities.kernels:
        return {}
    found: dict[str, Any] = {}
    for name, model in (("base", base), ("own", denoiser)):
        launches = count_launches(model, subject, steps, values[f"{name}_step_ms"])
        found |= {
            f"{name}_kernels": launches.kernels,
            f"{name}_busy_ms": launches.busy_ms,
            f"{name}_idle_ms": launches.idle_ms,
        }
    return found
