"""A contender: how to make what a pipeline calls, and with how many steps it runs."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from benchmarks.pareto.bench import Bench

EAGER, COMPILED, BLOCKS = "eager", "compiled", "compiled by block"
"""How a contender runs."""


@dataclass(frozen=True)
class Family:
    """Contenders that belong together: a line or a kind of marker.

    Attributes:
        key: What the command line calls it.
        title: What tables and figures call it.
        kind: ``"base"``, ``"fewer"``, ``"ours"``, ``"theirs"`` (a rival's schedule, run by
            dqar_fx) or ``"rival"``.
    """

    key: str
    title: str
    kind: str


BASE = Family("base", "untransformed", "base")
FEWER = Family("fewer", "fewer steps", "fewer")
ATTENTION = Family("attention", "attention reused", "ours")
BOTH = Family("all", "attention + feed-forward reused", "ours")
GUIDED = Family("guidance", "forecast, unconditional half too", "ours")
OPTIMISED = Family("tables", "optimised tables", "ours")
THEIRS = Family("schedules", "rivals' schedules, run by dqar_fx", "theirs")
DIFFUSERS = Family("diffusers", "diffusers hooks", "rival")
CACHE_DIT = Family("cache-dit", "cache-dit", "rival")
FORECAST = "forecast"
KEYS = (
    *(family.key for family in (FEWER, ATTENTION, BOTH)),
    FORECAST,
    *(family.key for family in (GUIDED, OPTIMISED, THEIRS, DIFFUSERS, CACHE_DIT)),
)
"""Families that the command line can choose; the base always takes part."""


def forecast_of(order: int) -> Family:
    """The family of forecasts of an order, in the place of reuse of both kinds of sites."""
    return Family(FORECAST, f"attention + feed-forward forecast, order {order}", "ours")


@dataclass(frozen=True)
class Entrant:
    """A contender, built.

    Attributes:
        module: What the pipeline calls.
        fresh: Gives the context of one trajectory, in which nothing of an earlier one is left.
        hooked: Modules that a rival's hooks are on; None where that is no question.
    """

    module: nn.Module
    fresh: Callable[[], AbstractContextManager[object]] = nullcontext
    hooked: int | None = None


class Recipe(Protocol):
    """How to make what the pipeline calls."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its pictures follow from, beside what all contenders share."""

    def build(self, bench: "Bench", mode: str) -> Entrant:
        """Make it."""


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        setting: What it does; equal for its modes.
        family: Where it belongs.
        steps: Denoising steps.
        recipe: How to make it.
        mode: `EAGER`, `COMPILED` or `BLOCKS`.
        tool: Of a rival, the system's name.
    """

    setting: str
    family: Family
    steps: int
    recipe: Recipe
    mode: str = COMPILED
    tool: str | None = None

    @property
    def name(self) -> str:
        """What tables call it; no two are equal."""
        is_plain = self.mode == COMPILED and self.family.kind not in ("base", "rival")
        return self.setting if is_plain else f"{self.setting}, {self.mode}"

    @property
    def identity(self) -> dict[str, Any]:
        """What its times and pictures follow from, beside what all contenders share."""
        own = {"contender": self.name, "trajectory": self.steps, "mode": self.mode}
        return {**own, **self.recipe.identity}
