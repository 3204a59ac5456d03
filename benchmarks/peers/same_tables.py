"""Rivals whose decisions are a branch table, too, and that table."""

from dataclasses import dataclass

from benchmarks.pareto.contenders import BLOCKS, COMPILED, EAGER, Recipe
from benchmarks.pareto.recipes import Transformed
from benchmarks.pareto.rivals import of_diffusers as hooks
from benchmarks.pareto.rivals import settings
from benchmarks.pareto.rivals.of_cache_dit import make_mask
from benchmarks.pareto.rivals.of_diffusers import Hooks
from benchmarks.pareto.rivals.schedules import fixed, magnitudes, masked
from benchmarks.peers.recipes import UNLIMITED, Hooked
from dqar_fx import Schedule, prior_art

PAB = "PAB range 2, timesteps all"
"""The setting that the bar is about."""


@dataclass(frozen=True)
class SameTable:
    """A rival's setting, and how dqar_fx runs its decisions.

    Attributes:
        setting: Of the rival.
        recipe: Attaches the rival.
        modes: How the rival runs.
        tool: The system's name.
        ours: The same decisions as a schedule.
        sites: Where it applies; ``{last}`` stands for the number of blocks.
        schedule: The same, where it needs no calibration.
    """

    setting: str
    recipe: Recipe
    modes: tuple[str, ...]
    tool: str
    ours: Transformed
    sites: str = ""
    schedule: Schedule | None = None


def list_tables(steps: int) -> list[SameTable]:
    """Rivals whose decisions are a branch table, too."""
    hook = {f"{tool} {name}": Hooked(made) for tool, name, made in settings.list_hooks()}
    cached = {f"cache-dit {name}": made for name, made in settings.list_cache_dit()}
    every = Schedule.interval(steps, 2)
    seer = prior_art.taylorseer(steps, 3, 1, first=3, start=4)
    mask = prior_art.step_mask(make_mask(3, steps)).forecast(1)
    three = (EAGER, COMPILED, BLOCKS)
    taylorseer, magcache = "TaylorSeer N=3 O=1", "MagCache 0.06, at most 3"
    cache_dit = "cache-dit mask of every 3 + TaylorSeer O=1"
    return [
        SameTable(
            PAB,
            Hooked(broadcast_always()),
            (*three, UNLIMITED),
            "PAB",
            fixed(every, interval=2),
            "attention",
            every,
        ),
        SameTable(
            taylorseer,
            hook[taylorseer],
            three,
            "TaylorSeer",
            fixed(seer, every=3, order=1, first=3),
            "all",
            seer,
        ),
        SameTable(magcache, hook[magcache], three, "MagCache", magnitudes(0.06, 3)),
        SameTable(
            cache_dit,
            cached[cache_dit],
            three,
            "cache-dit",
            masked(3, 1),
            "transformer_blocks.1:{last}",
            mask,
        ),
    ]


def broadcast_always() -> Hooks:
    """PAB at every second step of all."""
    values = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": settings.EVERYWHERE,
    }
    return Hooks(hooks.broadcast_attention(**values), values)
