"""Rules that are read from what another system decided: by step, by component, by layer.

They say what that system does, and why it does it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.rules import Plain, Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from dqar_fx.schedule.measured import MeasuredRun
    from dqar_fx.schedule.rules import Mask, Moment


def component_of(path: str) -> str:
    """The last part of a module path that is no number: ``attn1`` of ``blocks.3.attn1``."""
    parts = path.split(".")
    return next((part for part in reversed(parts) if not part[:1].isdigit()), path)


def listing(names: Sequence[str]) -> str:
    """Each name once, in order."""
    return ", ".join(dict.fromkeys(names))


# ---- by step -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told(Written):
    """Actions written out for all sites alike, each with its reason."""

    reasons: tuple[str, ...] = ()
    """Per step."""

    def why(self, moment: Moment, site: int) -> str:
        """As told."""
        del site
        return self.reasons[moment.step]


# ---- by component --------------------------------------------------------------------------


@dataclass(frozen=True)
class ByComponent(Plain):
    """Which steps compute, by the last part of a site's path, or the last two.

    Attributes:
        computes: Pairs of a key and a bool per step. The key is ``"attn1"`` for all sites
            whose path ends so, or ``"attn1-3"`` for that of block 3 alone, which goes first.
    """

    computes: tuple[tuple[str, tuple[bool, ...]], ...]

    def may_reuse(self, moment: Moment) -> Mask:
        """Where the component does not compute."""
        known, keys = dict(self.computes), self.keys(moment.sites)
        return np.array([key in known and not known[key][moment.step] for key in keys], bool)

    def why(self, moment: Moment, site: int) -> str:
        """What is written for the component."""
        known, key = dict(self.computes), self.keys(moment.sites)[site]
        if key not in known:
            return f"the SmoothCache schedule does not name {key}"
        done = "1: compute" if known[key][moment.step] else "0: reuse"
        return f"the SmoothCache schedule has {key} at {done}"

    def keys(self, sites: tuple[str, ...]) -> list[str]:
        """The key that decides on each site; its component where there is none.

        Raises:
            ScheduleError: A key means no site.
        """
        known, found = {key for key, _ in self.computes}, list[str]()
        meant = set[str]()
        for path in sites:
            *_, block, component = ("", *path.split("."))
            numbered = f"{component}-{block}"
            meant |= {component, numbered}
            found.append(numbered if numbered in known else component)
        lost = [key for key in sorted(known) if key not in meant]
        if lost:
            ends = listing([path.rpartition(".")[2] for path in sites])
            raise ScheduleError(
                f"component {lost[0]!r} of the SmoothCache schedule means none of "
                f"{len(sites)} sites, whose paths end in {ends}. Give the model's own names, "
                "read_smoothcache(..., names={'attn': 'attn1', 'mlp': 'ff'}), and sites that "
                "include them"
            )
        return found


# ---- by calibration ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Similar:
    """Reuse as far as the outputs of a component's layers stay similar, on average.

    Attributes:
        calibration: What was measured.
        threshold: Largest mean change.
        lookahead: Most steps that are skipped in a row.
    """

    calibration: MeasuredRun
    threshold: float
    lookahead: int

    @cached_property
    def changes(self) -> NDArray[np.float64]:
        """``[steps, calibrated sites, ages]``: mean over all sites of the same component."""
        change = self.calibration.change[:, :, : self.lookahead].copy()
        components = np.array([component_of(path) for path in self.calibration.sites])
        for component in np.unique(components):
            same = components == component
            change[:, same] = change[:, same].mean(axis=1, keepdims=True)
        return change

    @cached_property
    def skips(self) -> NDArray[np.int64]:
        """``[steps, calibrated sites]``: how many steps after a computed one are skipped."""
        steps, sites, ages = self.changes.shape
        skips = np.zeros((steps, sites), np.int64)
        for age in range(1, min(ages, steps - 1) + 1):
            similar = self.changes[age:, :, age - 1] <= self.threshold
            skips[: steps - age][similar] = age
        return skips

    def may_reuse(self, moment: Moment) -> Mask:
        """As far as was decided when the site was computed last; never at the last step."""
        columns = self.calibration.columns(moment.sites)
        allowed = self.skips[moment.step - moment.age, columns]
        return np.asarray((moment.age <= allowed) & (moment.step < moment.num_steps - 1))

    def why(self, moment: Moment, site: int) -> str:
        """The mean change that decided."""
        age, path = int(moment.age[site]), moment.sites[site]
        if moment.step == moment.num_steps - 1:
            return "SmoothCache computes the last step"
        if age > self.lookahead:
            return f"SmoothCache skips at most {self.lookahead} steps in a row"
        (column,), start = self.calibration.columns((path,)), moment.step - age
        skips = int(self.skips[start, column])
        reached, side = (skips, "within") if age <= skips else (age, "beyond")
        change = self.changes[start + reached, column, reached - 1]
        return (
            f"mean change of {component_of(path)} from step {start} to step "
            f"{start + reached} is {change:.3g}, {side} {self.threshold:.3g}"
        )

    def refuse_other_model(self, model: nn.Module) -> None:
        """If the calibration was of one."""
        self.calibration.fingerprint.refuse_other(model, "the SmoothCache schedule")


# ---- by layer ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Routed(Plain):
    """Reuse at every other step what a router scores low.

    Attributes:
        scores: float32 ``[steps, sites]``, in (0, 1).
        threshold: Sites above it compute.
    """

    scores: NDArray[np.float32]
    threshold: float

    def is_routed(self, step: int) -> bool:
        """Whether a router decides at a step: the last one, and every other before it."""
        return (len(self.scores) - 1 - step) % 2 == 0

    def may_reuse(self, moment: Moment) -> Mask:
        """By score."""
        self.refuse_other_sites(moment.sites)
        low = ~(self.scores[moment.step] > self.threshold)
        return np.asarray(low & self.is_routed(moment.step))

    def why(self, moment: Moment, site: int) -> str:
        """The score, or that there is none."""
        if not self.is_routed(moment.step):
            return "Learning-to-Cache computes everything at every other step"
        score = self.scores[moment.step, site]
        side = "above" if score > self.threshold else "not above"
        return f"router score {score:.3f} is {side} {self.threshold:.3g}"

    def refuse_other_sites(self, sites: tuple[str, ...]) -> None:
        """Raise unless they are an attention and a feed-forward of each block, in turn.

        Raises:
            ScheduleError: They are something else.
        """
        blocks = [path.rpartition(".")[0] for path in sites]
        ends = [path.rpartition(".")[2] for path in sites]
        in_turn = blocks[::2] == blocks[1::2] and len({*ends[::2]}) == len({*ends[1::2]}) == 1
        if len(sites) != self.scores.shape[1] or not in_turn:
            raise ScheduleError(
                f"the router scores {self.scores.shape[1]} layers, attention and feed-forward "
                f"of {self.scores.shape[1] // 2} blocks in turn, but there are {len(sites)} "
                f"sites, {sites[0]} to {sites[-1]}. Use the model that the router was trained "
                "for, and leave sites to the schedule"
            )
