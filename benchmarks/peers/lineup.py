"""Who takes part, in the order of the table: those of one branch table stand together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from benchmarks.harness.errors import InputError
from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import (
    BASE,
    BLOCKS,
    CACHE_DIT,
    COMPILED,
    DIFFUSERS,
    EAGER,
    FEWER,
    THEIRS,
    Family,
    Recipe,
    forecast_of,
)
from benchmarks.pareto.lineup import is_wanted, make_interval
from benchmarks.pareto.recipes import Transformed, Untransformed
from benchmarks.pareto.rivals import settings
from benchmarks.peers.recipes import (
    FROZEN,
    LOWERINGS,
    SHOWN,
    STOCK,
    Frozen,
    Hooked,
    Peer,
    Repeated,
)
from benchmarks.peers.same_tables import SameTable, list_tables
from dqar_fx import Schedule

DOCUMENTED = Family("stock", "as documented", "rival")
OWN_EVERY, OWN_ORDER = 3, 2
ALONE = (
    "PAB range 2, timesteps 100-800",
    "FasterCache to timestep 641",
    "FirstBlockCache 0.05",
)
"""Rivals of diffusers whose decision no branch table of ours has."""
STOCK_HOOKS = (
    "FasterCache defaults",
    "FirstBlockCache in the stock pipeline",
    "TaylorSeer defaults",
)


def line_up(options: Any, fewer: Sequence[int]) -> list[Peer]:
    """All rows that are wanted; the base's and its eager twin are always there.

    Raises:
        InputError: A pattern fits no row.
    """
    base, others = list_base(options), list_others(options, fewer)
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


def list_base(options: Any) -> list[Peer]:
    """The untransformed model: the first is what the unit is, the last runs eagerly."""
    modes = (EAGER,) if options.eager else (COMPILED, EAGER)
    make = Untransformed()
    return [Peer("untransformed", BASE, options.steps, make, mode) for mode in modes]


def list_others(options: Any, fewer: Sequence[int]) -> list[Peer]:
    """All rows but the base's."""
    steps = options.steps
    listed = [Peer("untransformed", BASE, steps, Repeated(), BLOCKS)]
    listed += [Peer("untransformed", BASE, steps, Frozen(), FROZEN)]
    listed += [
        Peer("compile_repeated_blocks", DOCUMENTED, steps, Repeated(), STOCK, "diffusers")
    ]
    plain = EAGER if options.eager else COMPILED
    listed += [Peer(f"{n} steps", FEWER, n, Untransformed(), plain) for n in fewer]
    for same in list_tables(steps):
        listed += list_same(same, steps)
    listed += list_alone(steps)
    own = own_recipe(steps)
    name = f"dqar_fx forecast order {OWN_ORDER}, every {OWN_EVERY}"
    listed += list_modes(name, forecast_of(OWN_ORDER), steps, own, None)
    if not options.eager:
        return listed
    return [each for each in listed if each.mode in (EAGER, STOCK)]


def list_same(same: SameTable, steps: int) -> Iterator[Peer]:
    """A rival, and dqar_fx with its table."""
    family = CACHE_DIT if same.tool == "cache-dit" else DIFFUSERS
    for mode in same.modes:
        yield Peer(same.setting, family, steps, same.recipe, mode, same.tool, same.setting)
    yield from list_modes(f"dqar_fx as {same.setting}", THEIRS, steps, same.ours, same.setting)


def list_modes(
    setting: str, family: Family, steps: int, recipe: Recipe, table: str | None
) -> Iterator[Peer]:
    """A setting of dqar_fx in each of its modes."""
    for mode in (EAGER, *LOWERINGS):
        yield Peer(setting, family, steps, recipe, mode, None, table)


def list_alone(steps: int) -> Iterator[Peer]:
    """Rivals that decide while they run, or as no table says; and what does not attach."""
    made = {f"{tool} {name}": (tool, made) for tool, name, made in settings.list_hooks()}
    for setting in ALONE:
        tool, recipe = made[setting]
        for mode in (EAGER, COMPILED, BLOCKS):
            yield Peer(setting, DIFFUSERS, steps, Hooked(recipe), mode, tool)
    for setting in STOCK_HOOKS:
        tool, recipe = made[setting]
        yield Peer(setting, DOCUMENTED, steps, Hooked(recipe), STOCK, tool)
    for name, cached in settings.list_cache_dit():
        if name in ("defaults", "F1B0 0.08"):
            for mode in (EAGER, COMPILED, BLOCKS):
                yield Peer(f"cache-dit {name}", CACHE_DIT, steps, cached, mode, "cache-dit")


def own_recipe(steps: int) -> Transformed:
    """What dqar_fx would do of its own: forecasts of attention and feed-forward."""
    numbers = {"every": OWN_EVERY, "warmup": 1, "order": OWN_ORDER}

    def make(bench: Bench) -> Schedule:
        return make_interval(bench.steps, **numbers)

    return Transformed(make, {"sites": "all", **numbers}, "all")
