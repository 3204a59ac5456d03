"""A contender: how to make what a pipeline calls, and with how many steps it runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn

from benchmarks.contenders.kinds import COMPILED, Family


@dataclass(frozen=True)
class Entrant:
    """A contender, built.

    Attributes:
        module: What the pipeline calls.
        fresh: Gives the context of one trajectory, in which nothing of an earlier one is left.
        hooked: Modules that a peer's hooks are on; None where that is no question.
        scheduler: What takes the place of the pipeline's scheduler; None for that one.
        trials: Schedules that were tried to find this one; None where none was searched.
    """

    module: nn.Module
    fresh: Callable[[], AbstractContextManager[object]] = nullcontext
    hooked: int | None = None
    scheduler: Any = None
    trials: int | None = None


class Recipe(Protocol):
    """How to make what the pipeline calls."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its pictures follow from, beside what all contenders share."""

    def build(self, bench: Any, mode: str) -> Entrant:
        """Make it on a `Bench`, to run in a mode."""


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        setting: What it does; equal for its modes.
        family: Where it belongs.
        steps: Denoising steps.
        recipe: How to make it.
        mode: `EAGER`, `COMPILED` or another way to run.
        tool: Of a peer, the system's name.
        table: What is equal for those that follow one branch table; None for nobody else.
        is_shown: Whether its pictures are judged against real ones.
    """

    setting: str
    family: Family
    steps: int
    recipe: Recipe
    mode: str = COMPILED
    tool: str | None = None
    table: str | None = None
    is_shown: bool = True

    @property
    def name(self) -> str:
        """What tables call it; no two are equal."""
        is_plain = self.mode == COMPILED and self.family.kind not in ("base", "peer")
        return self.setting if is_plain else f"{self.setting}, {self.mode}"

    @property
    def identity(self) -> dict[str, Any]:
        """What its times and pictures follow from, beside what all contenders share."""
        own = {"contender": self.name, "trajectory": self.steps, "mode": self.mode}
        return {**own, **self.recipe.identity}


def is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether a row's name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def in_modes(
    modes: Iterable[str],
    setting: str,
    family: Family,
    steps: int,
    recipe: Recipe,
    tool: str | None = None,
    table: str | None = None,
) -> list[Contender]:
    """A contender for each way to run."""
    return [Contender(setting, family, steps, recipe, mode, tool, table) for mode in modes]
