"""Who takes part, in the order of the table: those of one branch table stand together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch

import dqar_fx
from benchmarks.contenders import kinds, settings
from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Contender, Recipe, in_modes, is_wanted
from benchmarks.contenders.recipes import (
    Frozen,
    Repeated,
    Transformed,
    Untransformed,
    make_interval,
)
from benchmarks.contenders.settings import fixed, magnitudes, masked
from benchmarks.harness.errors import InputError
from benchmarks.harness.macs import count_macs, count_schedules, to_meta, to_meta_call
from benchmarks.peers.options import Options
from dqar_fx import Schedule, prior_art

REGIONAL, WHOLE = "regional", "whole"
REGIONAL_PACKED, WHOLE_PACKED = PACKED = "regional, prepacked", "whole, prepacked"
LOWERINGS: dict[str, str | Mapping[str, Any]] = {
    REGIONAL: REGIONAL,
    WHOLE: WHOLE,
    REGIONAL_PACKED: {"unit": REGIONAL, "prepack": True},
    WHOLE_PACKED: {"unit": WHOLE, "prepack": True},
}
"""How dqar_fx compiles, by mode."""
OURS = (kinds.EAGER, *LOWERINGS)
THREE = (kinds.EAGER, kinds.COMPILED, kinds.BLOCKS)
SHOWN = (kinds.COMPILED, REGIONAL, kinds.STOCK)
"""Modes whose pictures are judged against real ones; no setting has two of them, and those of
the others differ by how they round, which their PSNR tells."""
PAB = "PAB range 2, timesteps all"
"""The setting that the bar is about."""
OWN = {"every": 3, "warmup": 1, "order": 2}
OWN_NAME = "dqar_fx forecast order {order}, every {every}".format(**OWN)
ALONE = (
    "PAB range 2, timesteps 100-800",
    "FasterCache to timestep 641",
    "FirstBlockCache 0.05",
)
"""Settings of diffusers whose decision no branch table of ours has."""
STOCK_HOOKS = (
    "FasterCache defaults",
    "FirstBlockCache in the stock pipeline",
    "TaylorSeer defaults",
)


def line_up(options: Options, fewer: Sequence[int]) -> list[Contender]:
    """All rows that are wanted; the base's and its eager twin are always there.

    The first is what the unit is, and the last of its family runs eagerly.

    Raises:
        InputError: A pattern fits no row.
    """
    steps = options.steps or 0
    modes = (kinds.EAGER,) if options.eager else (kinds.COMPILED, kinds.EAGER)
    base = in_modes(modes, "untransformed", kinds.BASE, steps, Untransformed())
    others = list(list_others(steps, fewer, modes[0]))
    if options.eager:
        others = [each for each in others if each.mode in (kinds.EAGER, kinds.STOCK)]
    known = [each.name for each in (*base, *others)]
    for pattern in options.only:
        if not any(is_wanted(name, [pattern]) for name in known):
            near = get_close_matches(pattern, known, n=3, cutoff=0)
            raise InputError(
                f"--only: no row is called {pattern!r}; there are "
                f"{', '.join(map(repr, near))} and {len(known) - len(near)} more"
            )
    wanted = base + [each for each in others if is_wanted(each.name, options.only)]
    return [replace(e, is_shown=options.eager or e.mode in SHOWN) for e in wanted]


def list_others(steps: int, fewer: Sequence[int], plain: str) -> Iterator[Contender]:
    """All rows but the base's."""
    yield Contender("untransformed", kinds.BASE, steps, Repeated(), kinds.BLOCKS)
    yield Contender("untransformed", kinds.BASE, steps, Frozen(), kinds.FROZEN)
    name = "compile_repeated_blocks"
    yield Contender(name, kinds.DOCUMENTED, steps, Repeated(), kinds.STOCK, "diffusers")
    for number in fewer:
        yield Contender(f"{number} steps", kinds.FEWER, number, Untransformed(), plain)
    for same in list_tables(steps):
        tool, setting = same.tool, same.setting
        family = kinds.CACHE_DIT if tool == "cache-dit" else kinds.DIFFUSERS
        yield from in_modes(same.modes, setting, family, steps, same.recipe, tool, setting)
        name = f"dqar_fx as {setting}"
        yield from in_modes(OURS, name, kinds.THEIRS, steps, same.ours, None, setting)
    # those that decide while they run, or as no table says; and what does not attach
    found = {f"{tool} {name}": (tool, made) for tool, name, made in settings.list_hooks()}
    for setting in (*ALONE, *STOCK_HOOKS):
        tool, recipe = found[setting]
        if setting in ALONE:
            yield from in_modes(THREE, setting, kinds.DIFFUSERS, steps, recipe, tool)
        else:
            yield Contender(setting, kinds.DOCUMENTED, steps, recipe, kinds.STOCK, tool)
    for name, cached in settings.list_cache_dit():
        if name in ("defaults", "F1B0 0.08"):
            own = f"cache-dit {name}", kinds.CACHE_DIT, steps, cached, "cache-dit"
            yield from in_modes(THREE, *own)
    name = f"dqar_fx forecast order {OWN['order']}, every {OWN['every']}"
    yield from in_modes(
        OURS, name, kinds.forecast_of(OWN["order"]), steps, forecast_all(steps)
    )


def forecast_all(steps: int) -> Transformed:
    """What dqar_fx would do of its own: forecasts of attention and feed-forward."""
    return Transformed(partial(make_interval, steps, **OWN), {"sites": "all", **OWN}, "all")


# ---- one branch table, theirs and ours ----------------------------------------------------


@dataclass(frozen=True)
class SameTable:
    """A peer's setting, and how dqar_fx runs its decisions.

    Attributes:
        setting: Of the peer.
        tool: The system's name.
        recipe: Attaches the peer.
        ours: The same decisions as a schedule.
        modes: How the peer runs.
    """

    setting: str
    tool: str
    recipe: Recipe
    ours: Transformed
    modes: tuple[str, ...] = THREE


def list_tables(steps: int) -> list[SameTable]:
    """Peers whose decisions are a branch table, too."""
    hook = {f"{tool} {name}": made for tool, name, made in settings.list_hooks()}
    cached = {f"cache-dit {name}": made for name, made in settings.list_cache_dit()}
    seer, magcache = "TaylorSeer N=3 O=1", "MagCache 0.06, at most 3"
    mask = "cache-dit mask of every 3 + TaylorSeer O=1"
    always = settings.broadcast(2, settings.EVERYWHERE)
    as_pab = fixed(Schedule.interval(steps, 2), interval=2)
    as_seer = prior_art.taylorseer(steps, 3, 1, first=3, start=4)
    return [
        SameTable(PAB, "PAB", always, as_pab, (*THREE, kinds.UNLIMITED)),
        SameTable(seer, "TaylorSeer", hook[seer], fixed(as_seer, every=3, order=1, first=3)),
        SameTable(magcache, "MagCache", hook[magcache], magnitudes(0.06, 3)),
        SameTable(mask, "cache-dit", cached[mask], masked(3, 1)),
    ]


@torch.no_grad()
def find_equal_cost(bench: Bench) -> tuple[int, ...]:
    """Numbers of untransformed steps with as many multiply-accumulates as our tables have."""
    meta: Any = to_meta(bench.original)
    inputs = to_meta_call(bench.task(0).example_call(bench.original))
    step = count_macs(lambda: meta(**inputs))
    recipes = [same.ours for same in list_tables(bench.steps)] + [forecast_all(bench.steps)]
    found: list[int] = []
    for recipe in recipes:
        if recipe.identity.get("rule") == "magcache":
            continue  # it needs a calibration
        schedule = recipe.make(bench)
        sites = recipe.sites or schedule.sites or "attention"
        probe = dqar_fx.transform(meta, Schedule.compute_all(1), sites=sites)
        probe.prepare(**inputs)
        found += [round(macs / step) for macs in count_schedules(probe, inputs, [schedule])]
    return tuple(sorted({n for n in found if 0 < n < bench.steps}, reverse=True))
