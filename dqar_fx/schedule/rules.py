"""Rules: which sites may reuse at a step, and why.

A rule is a pure function of the step, the sites and how old their kept outputs are. What a
gate measured belongs to the rule, so that the same rule always gives the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dqar_fx.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Moment:
    """What a rule decides on.

    Attributes:
        step: The step, at least 1: at step 0 nothing is kept yet.
        num_steps: Steps of the trajectory.
        sites: Module paths, in the order of the table's columns.
        age: int64 ``[sites]``: steps since each site was computed last, at least 1.
    """

    step: int
    num_steps: int
    sites: tuple[str, ...]
    age: NDArray[np.int64]


class Rule(Protocol):
    """Which sites may reuse at a step."""

    def may_reuse(self, moment: Moment) -> Mask:
        """Bool ``[sites]``."""

    def why(self, moment: Moment, site: int) -> str:
        """The reason for one site, with the numbers that decided."""

    def refuse_other_model(self, model: nn.Module) -> None:
        """Raise if the rule was made for another model."""


class Plain:
    """What rules have that were made for no model in particular."""

    def refuse_other_model(self, model: nn.Module) -> None:
        """Any model will do."""


@dataclass(frozen=True)
class Linear(Plain):
    """Site ``i`` of ``n`` reuses from ``warmup + i / (n - 1) * (full_from - warmup)`` on.

    Rounded to whole steps, half up.
    """

    warmup: int
    full_from: int

    def starts(self, num_sites: int) -> NDArray[np.int64]:
        """The first step at which each site reuses: shallow sites first, deep sites last."""
        deepest = max(num_sites - 1, 1)
        delay = np.arange(num_sites) * (self.full_from - self.warmup)
        return self.warmup + (2 * delay + deepest) // (2 * deepest)  # exact, half up

    def may_reuse(self, moment: Moment) -> Mask:
        """From each site's first step on."""
        return np.asarray(moment.step >= self.starts(len(moment.sites)))

    def why(self, moment: Moment, site: int) -> str:
        """Where the step lies."""
        start = int(self.starts(len(moment.sites))[site])
        if moment.step >= start:
            return f"the linear schedule reuses this site from step {start} on"
        if moment.step < self.warmup:
            return f"the first {self.warmup} steps are warm-up"
        return f"the linear schedule computes this site before step {start}"


@dataclass(frozen=True)
class Interval(Plain):
    """After the warm-up every site computes at each ``every``-th step and reuses between."""

    every: int
    warmup: int

    def may_reuse(self, moment: Moment) -> Mask:
        """The same for all sites."""
        since = moment.step - self.warmup
        may = since >= 0 and (since + 1) % self.every != 0
        return np.full(len(moment.sites), may)

    def why(self, moment: Moment, site: int) -> str:
        """Where the step lies."""
        del site
        if moment.step < self.warmup:
            return f"the first {self.warmup} steps are warm-up"
        since = (moment.step - self.warmup + 1) % self.every
        return (
            f"each {self.every}-th step after the warm-up computes"
            if since == 0
            else f"step {since} of {self.every - 1} between computed ones"
        )


@dataclass(frozen=True)
class Written(Plain):
    """Actions written out: letters ``[steps, sites or 1]``; C leaves storing to `Schedule`."""

    letters: tuple[tuple[str, ...], ...]
    strict: bool
    """Whether each action stands as it is; else C is stored where a later R reads it."""
    orders: tuple[tuple[int, ...], ...] = ((0,),)
    """Of forecasts, ``[steps or 1, sites or 1]``."""
    weights: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """Of forecasts, ``[steps, sites, points]``; empty where the method weighs them."""

    def spread(self, num_sites: int) -> NDArray[np.str_]:
        """Letters ``[steps, sites]``."""
        letters = np.array(self.letters)
        if letters.shape[1] not in (1, num_sites):
            raise ScheduleError(
                f"the written-out schedule has {letters.shape[1]} sites but the model has "
                f"{num_sites}; write one column per site, or a single one for all"
            )
        return np.broadcast_to(letters, (letters.shape[0], num_sites))

    def may_reuse(self, moment: Moment) -> Mask:
        """Where R or F is written."""
        return np.isin(self.spread(len(moment.sites))[moment.step], ("R", "F"))

    def why(self, moment: Moment, site: int) -> str:
        """As written."""
        return f"written out: {self.spread(len(moment.sites))[moment.step, site]}"


@dataclass(frozen=True)
class Young(Plain):
    """Reuse while a kept output is at most ``max_age`` steps old."""

    max_age: int

    def may_reuse(self, moment: Moment) -> Mask:
        """By age."""
        return np.asarray(moment.age <= self.max_age)

    def why(self, moment: Moment, site: int) -> str:
        """The age."""
        side = "within" if moment.age[site] <= self.max_age else "beyond"
        return f"what is kept is {moment.age[site]} steps old, {side} max_age={self.max_age}"


@dataclass(frozen=True)
class AllOf:
    """Reuse where all rules allow it."""

    rules: tuple[Rule, ...]

    def may_reuse(self, moment: Moment) -> Mask:
        """All."""
        return np.asarray(np.all([rule.may_reuse(moment) for rule in self.rules], axis=0))

    def why(self, moment: Moment, site: int) -> str:
        """Those who refuse; if none does, all."""
        votes = [bool(rule.may_reuse(moment)[site]) for rule in self.rules]
        return join_reasons(self.rules, votes, decisive=all(votes), moment=moment, site=site)

    def refuse_other_model(self, model: nn.Module) -> None:
        """If one of them refuses."""
        for rule in self.rules:
            rule.refuse_other_model(model)


@dataclass(frozen=True)
class AnyOf:
    """Reuse where one rule allows it."""

    rules: tuple[Rule, ...]

    def may_reuse(self, moment: Moment) -> Mask:
        """Any."""
        return np.asarray(np.any([rule.may_reuse(moment) for rule in self.rules], axis=0))

    def why(self, moment: Moment, site: int) -> str:
        """Those who allow it; if none does, all."""
        votes = [bool(rule.may_reuse(moment)[site]) for rule in self.rules]
        return join_reasons(self.rules, votes, decisive=any(votes), moment=moment, site=site)

    def refuse_other_model(self, model: nn.Module) -> None:
        """If one of them refuses."""
        for rule in self.rules:
            rule.refuse_other_model(model)


def join_reasons(
    rules: Sequence[Rule], votes: Sequence[bool], *, decisive: bool, moment: Moment, site: int
) -> str:
    """The reasons of the rules that voted as was decided."""
    pairs = zip(rules, votes, strict=True)
    return "; ".join(rule.why(moment, site) for rule, vote in pairs if vote == decisive)
