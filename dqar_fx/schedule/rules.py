"""Rules: which sites may reuse what they kept at a step, and why.

A rule is a pure function of the step, the sites and the ages of their kept outputs. Whatever
it was measured on or read from is a part of it, so the same rule always gives the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .run import RunShape

    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Moment:
    """What a rule decides on.

    Attributes:
        step: The step, at least 1: at step 0 nothing is kept yet.
        num_steps: Steps of the trajectory.
        sites: Module paths, in the order of the table's columns.
        age: int64 ``[sites]``: steps since each site was last computed, at least 1.
        call: Which call of its solver's step this is, from 0 on; 0 where each step calls
            once, or where that is not known. Steps are calls: a solver that calls the
            denoiser twice has twice as many of them.
    """

    step: int
    num_steps: int
    sites: tuple[str, ...]
    age: NDArray[np.int64]
    call: int = 0


class Rule(Protocol):
    """Decides which sites may reuse at a step."""

    @property
    def max_order(self) -> int:
        """The highest order of a forecast that the rule itself asks for; 0 for none."""

    @property
    def needs_noise(self) -> bool:
        """Whether it cannot decide before it knows the noise levels of the run."""

    def for_run(self, run: RunShape) -> Rule:
        """Return the rule for a run of that length and noise.

        Raises:
            ScheduleError: The rule is not good for the run, or has to know more of it.
        """

    def may_reuse(self, moment: Moment) -> Mask:
        """Return whether each site may reuse, bool ``[sites]``."""

    def why(self, moment: Moment, site: int) -> str:
        """Return the reason for one site, with the numbers that decided."""

    def notice_for(self, num_steps: int) -> str:
        """Return what a user should be told of runs of that length; empty for nothing."""

    def refuse_other_model(self, model: Any) -> None:
        """Raise `ScheduleError` if the rule was made for another ``torch.nn.Module``."""


class AnyRunRule:
    """The base of rules that are good for runs of any length as they are."""

    @property
    def max_order(self) -> int:
        """The highest order of a forecast that the rule itself asks for: none."""
        return 0

    @property
    def needs_noise(self) -> bool:
        """Whether it cannot decide before it knows the noise levels of the run: it can."""
        return False

    def for_run(self, run: RunShape) -> Any:
        """Return the rule itself."""
        del run
        return self

    def notice_for(self, num_steps: int) -> str:
        """Return what a user should be told of runs of that length: nothing."""
        del num_steps
        return ""


class AnyModelRule(AnyRunRule):
    """The base of rules that fit any model."""

    def refuse_other_model(self, model: Any) -> None:
        """Accept every model."""


@dataclass(frozen=True)
class LinearRule(AnyModelRule):
    """Reuse spreads from the first site to the last one, step by step.

    Site ``i`` of ``n`` reuses from step ``warmup + i / (n - 1) * (full_from - warmup)`` on,
    rounded to a whole step, half up.

    Attributes:
        warmup: How many first steps compute everything.
        full_from: The step from which all sites reuse; None for the step half-way between
            the end of the warm-up and the end of the trajectory.
    """

    warmup: int
    full_from: int | None

    def starts(self, num_sites: int, num_steps: int) -> NDArray[np.int64]:
        """Return the first step at which each site reuses, int64 ``[sites]``, ascending."""
        deepest, length = max(num_sites - 1, 1), max(num_steps - self.warmup, 0) // 2
        if self.full_from is not None:
            length = self.full_from - self.warmup
        delay = np.arange(num_sites) * length
        return self.warmup + (2 * delay + deepest) // (2 * deepest)  # exact, half up

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site to reuse from its first step on."""
        return np.asarray(moment.step >= self.starts(len(moment.sites), moment.num_steps))

    def why(self, moment: Moment, site: int) -> str:
        """Say on which side of the site's first step the moment lies."""
        start = int(self.starts(len(moment.sites), moment.num_steps)[site])
        if moment.step >= start:
            return f"the linear schedule reuses this site from step {start} on"
        if moment.step < self.warmup:
            return f"the first {self.warmup} steps are warm-up"
        return f"the linear schedule computes this site before step {start}"


@dataclass(frozen=True)
class IntervalRule(AnyModelRule):
    """After the warm-up every site computes at each ``every``-th step and reuses between."""

    every: int
    warmup: int

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow all sites or none to reuse."""
        since = moment.step - self.warmup
        may = since >= 0 and (since + 1) % self.every != 0
        return np.full(len(moment.sites), may)

    def why(self, moment: Moment, site: int) -> str:
        """Say where the step lies between those that compute."""
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
class ComputeRule(AnyModelRule):
    """Every site computes at each step."""

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow no site to reuse."""
        return np.zeros(len(moment.sites), bool)

    def why(self, moment: Moment, site: int) -> str:
        """Say that nothing is reused."""
        del moment, site
        return "the schedule computes everything"


@dataclass(frozen=True)
class LaterCallRule(AnyModelRule):
    """Reuse at the second and later calls of a solver's step, after the warm-up."""

    warmup: int

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow all sites or none to reuse."""
        may = moment.step >= self.warmup and moment.call > 0
        return np.full(len(moment.sites), may)

    def why(self, moment: Moment, site: int) -> str:
        """Say which call of its step the moment is."""
        del site
        if moment.step < self.warmup:
            return f"the first {self.warmup} steps are warm-up"
        return f"this is call {moment.call}, from 0 on, of a step of the solver"


@dataclass(frozen=True)
class AgeLimit(AnyModelRule):
    """Reuse while a kept output is at most ``max_age`` steps old."""

    max_age: int

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site whose kept output is young enough to reuse it."""
        return np.asarray(moment.age <= self.max_age)

    def why(self, moment: Moment, site: int) -> str:
        """Compare the age with the limit."""
        side = "within" if moment.age[site] <= self.max_age else "beyond"
        return f"what is kept is {moment.age[site]} steps old, {side} max_age={self.max_age}"


@dataclass(frozen=True)
class RuleCombination(AnyRunRule):
    """Rules that decide together.

    Attributes:
        rules: The rules.
        join: Makes one decision of theirs: `numpy.all` or `numpy.any`.
    """

    rules: tuple[Rule, ...]
    join: ClassVar[Callable[..., Any]]

    @property
    def needs_noise(self) -> bool:
        """Whether one of the rules does."""
        return any(rule.needs_noise for rule in self.rules)

    def for_run(self, run: RunShape) -> Self:
        """Return the same combination of the rules for a run."""
        return type(self)(tuple(rule.for_run(run) for rule in self.rules))

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site by the joined decision."""
        return np.asarray(self.join([rule.may_reuse(moment) for rule in self.rules], axis=0))

    def why(self, moment: Moment, site: int) -> str:
        """Join the reasons of the rules that want for a site what was decided."""
        votes = [bool(rule.may_reuse(moment)[site]) for rule in self.rules]
        pairs, decision = zip(self.rules, votes, strict=True), self.join(votes)
        return "; ".join(rule.why(moment, site) for rule, vote in pairs if vote == decision)

    def notice_for(self, num_steps: int) -> str:
        """Join what the rules have to tell."""
        told = (rule.notice_for(num_steps) for rule in self.rules)
        return "; ".join(dict.fromkeys(filter(None, told)))

    def refuse_other_model(self, model: Any) -> None:
        """Raise `ScheduleError` if one of the rules was made for another model."""
        for rule in self.rules:
            rule.refuse_other_model(model)


class AllOf(RuleCombination):
    """Reuse where all rules allow it."""

    join = staticmethod(np.all)


class AnyOf(RuleCombination):
    """Reuse where at least one rule allows it."""

    join = staticmethod(np.any)
