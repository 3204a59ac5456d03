"""SmoothCache (arXiv 2411.10510), which decides by component: by calibration, or by file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.measured import check_length
from dqar_fx.schedule.rules import AnyModelRule, AnyRunRule
from dqar_fx.schedule.schedule import Schedule, check_at_least

from .decisions import check_number, read_json, read_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dqar_fx.schedule.measured import MeasuredRun
    from dqar_fx.schedule.rules import Mask, Moment
    from dqar_fx.schedule.run import RunShape

KEY = re.compile(r"(?P<component>.+?)(?P<block>-\d+)?")
"""A key of a schedule file: ``attn1``, or ``attn1-3`` for that of block 3."""


# ---- by calibration ------------------------------------------------------------------------


def smoothcache(calibration: MeasuredRun, threshold: float, *, lookahead: int = 3) -> Schedule:
    """Reuse as long as a component's outputs stay similar, on average: SmoothCache.

    After a computed step, as many steps are skipped, up to ``lookahead``, as the farthest at
    which the mean change over all layers of a component is at most the threshold; changes on
    the way there do not matter. A component is the last part of the module path (``attn1``,
    ``ff``). The last step is computed.

    The change is relative in the L2 norm, where SmoothCache has the L1 norm: equal thresholds
    are close, but not the same.

    Args:
        calibration: A calibration of this model, from
            ``dqar_fx.calibrate(..., sites="all")``.
        threshold: Largest mean change (its alpha).
        lookahead: Most steps that are skipped in a row.

    Returns:
        A schedule for the calibrated sites.

    Raises:
        ScheduleError: An argument is out of range, or such ages were not calibrated.

    Source:
        Liu et al. 2024, arXiv 2411.10510; Roblox/SmoothCache,
        SmoothCache/calibration/calibration_helper.py.
    """
    check_number(threshold=threshold)
    check_at_least(1, lookahead=lookahead)
    if lookahead > calibration.max_age:
        raise ScheduleError(
            f"lookahead={lookahead}, but the calibration knows ages up to "
            f"{calibration.max_age}; calibrate with max_age={lookahead}"
        )
    rule = SimilarityRule(calibration, float(threshold), int(lookahead))
    return Schedule(calibration.num_steps, rule, sites=calibration.sites)


@dataclass(frozen=True, eq=False)
class SimilarityRule(AnyRunRule):
    """Reuse as long as the outputs of a component's layers stay similar, on average.

    Attributes:
        calibration: The run that measured the changes.
        threshold: Largest mean change.
        lookahead: Most steps that are skipped in a row.
    """

    calibration: MeasuredRun
    threshold: float
    lookahead: int

    def for_run(self, run: RunShape) -> SimilarityRule:
        """Return the rule itself; raise `ScheduleError` for another number of steps."""
        check_length("the SmoothCache schedule", self.calibration.num_steps, run)
        return self

    @cached_property
    def changes(self) -> NDArray[np.float64]:
        """Mean change over the sites of a component, ``[steps, calibrated sites, ages]``."""
        change = self.calibration.change[:, :, : self.lookahead].copy()
        components = np.array([component_of(path) for path in self.calibration.sites])
        for component in np.unique(components):
            same = components == component
            change[:, same] = change[:, same].mean(axis=1, keepdims=True)
        return change

    @cached_property
    def skips(self) -> NDArray[np.int64]:
        """How many steps are skipped after a computed one, ``[steps, calibrated sites]``."""
        steps, sites, ages = self.changes.shape
        skips = np.zeros((steps, sites), np.int64)
        for age in range(1, min(ages, steps - 1) + 1):
            similar = self.changes[age:, :, age - 1] <= self.threshold
            skips[: steps - age][similar] = age
        return skips

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow the skips decided when a site was last computed; none at the last step."""
        columns = self.calibration.columns(moment.sites)
        allowed = self.skips[moment.step - moment.age, columns]
        return np.asarray((moment.age <= allowed) & (moment.step < moment.num_steps - 1))

    def why(self, moment: Moment, site: int) -> str:
        """Compare the mean change that decided with the threshold."""
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

    def refuse_other_model(self, model: Any) -> None:
        """Raise `ScheduleError` if the calibration was of another model."""
        self.calibration.fingerprint.refuse_other(model, "the SmoothCache schedule")


def component_of(path: str) -> str:
    """Return the last part of a path that is no number: ``attn1`` of ``blocks.3.attn1``."""
    parts = path.split(".")
    return next((part for part in reversed(parts) if not part[:1].isdigit()), path)


# ---- by file -------------------------------------------------------------------------------


def read_smoothcache(
    schedule: str | Path | Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> Schedule:
    """Read a schedule that SmoothCache's calibration has written.

    ``{"attn1": [1, 0, ...], "ff": [1, 1, ...]}``: for each component, which is the last part
    of a module path, 1 where it computes and 0 where it reuses. ``"attn1-3"`` is that of
    block 3 alone and takes precedence over ``"attn1"``. What the schedule does not name is
    always computed. A calibration writes no other file: the errors that it measures are not
    kept.

    Args:
        schedule: The JSON file, or its content.
        names: What the model calls each component: ``{"attn": "attn1", "mlp": "ff"}`` for a
            schedule of the original DiT and a DiT of diffusers.

    Returns:
        A schedule for the sites whose paths end in these components.

    Raises:
        ScheduleError: The file cannot be read, an entry is not 0 or 1 or the first is 0,
            lengths differ, or a name is unknown; when the table is made, also a component
            that no site belongs to.

    Source:
        Liu et al. 2024, arXiv 2411.10510; Roblox/SmoothCache, smoothcache_schedules, and
        dit-smoothcache 0.1.1, smooth_cache_helper.py.
    """
    masks = {
        key: read_mask(f"component {key!r} of the SmoothCache schedule", mask)
        for key, mask in read_components(schedule).items()
    }
    lengths = {key: len(mask) for key, mask in masks.items()}
    if len(set(lengths.values())) != 1:
        raise ScheduleError(
            f"components of a SmoothCache schedule need one length, found {lengths}"
        )
    renamed = rename_components(masks, names or {})
    components = dict.fromkeys(split_key(key)[0] for key in renamed)
    patterns = tuple(f"*.{component}" for component in components)
    rule = ComponentRule(tuple(renamed.items()))
    return Schedule(next(iter(lengths.values())), rule, sites=patterns)


@dataclass(frozen=True)
class ComponentRule(AnyModelRule):
    """Reuse at the steps that are written for a component, the last part of a site's path.

    Attributes:
        masks: Pairs of a key and a bool per step, True to compute. The key is ``"attn1"`` for
            all sites whose path ends so, or ``"attn1-3"`` for that of block 3 alone, which
            takes precedence.
    """

    masks: tuple[tuple[str, tuple[bool, ...]], ...]

    def for_run(self, run: RunShape) -> ComponentRule:
        """Return the rule itself; raise `ScheduleError` for another number of steps."""
        check_length("the SmoothCache schedule", len(self.masks[0][1]), run)
        return self

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site whose component does not compute at this step."""
        known, keys = dict(self.masks), self.keys(moment.sites)
        return np.array([key in known and not known[key][moment.step] for key in keys], bool)

    def why(self, moment: Moment, site: int) -> str:
        """Say what is written for the site's component."""
        known, key = dict(self.masks), self.keys(moment.sites)[site]
        if key not in known:
            return f"the SmoothCache schedule does not name {key}"
        done = "1: compute" if known[key][moment.step] else "0: reuse"
        return f"the SmoothCache schedule has {key} at {done}"

    def keys(self, sites: tuple[str, ...]) -> list[str]:
        """Return the key that decides on each site, or its component where there is none.

        Raises:
            ScheduleError: No site belongs to one of the keys.
        """
        known, found = {key for key, _ in self.masks}, list[str]()
        meant = set[str]()
        for path in sites:
            *_, block, component = ("", *path.split("."))
            numbered = f"{component}-{block}"
            meant |= {component, numbered}
            found.append(numbered if numbered in known else component)
        lost = [key for key in sorted(known) if key not in meant]
        if lost:
            ends = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in sites))
            raise ScheduleError(
                f"component {lost[0]!r} of the SmoothCache schedule means none of "
                f"{len(sites)} sites, whose paths end in {ends}. Give the model's own names, "
                "read_smoothcache(..., names={'attn': 'attn1', 'mlp': 'ff'}), and sites that "
                "include them"
            )
        return found


def read_components(schedule: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the masks by component of a JSON file, or of its content.

    Raises:
        ScheduleError: The file cannot be read, or its content is no mapping or empty.
    """
    content: Any = schedule
    if not isinstance(schedule, Mapping):
        expected = 'JSON: {"attn1": [1, 0, ...], ...}'
        content = read_json(schedule, "SmoothCache schedule", expected)
    if not isinstance(content, Mapping) or not content:
        raise ScheduleError(
            "a SmoothCache schedule has a list per component, "
            f'{{"attn1": [1, 0, ...], ...}}; found {content!r}'
        )
    return {str(key): value for key, value in content.items()}


def rename_components(
    masks: Mapping[str, tuple[bool, ...]], names: Mapping[str, str]
) -> dict[str, tuple[bool, ...]]:
    """Return the masks by the model's own names of components.

    Raises:
        ScheduleError: A name is of no component, or two components get the same name.
    """
    components = dict.fromkeys(split_key(key)[0] for key in masks)
    unknown = [name for name in names if name not in components]
    if unknown:
        raise ScheduleError(
            f"names has {unknown[0]!r}, which is no component of the SmoothCache schedule; "
            f"its components are {', '.join(components)}"
        )
    renamed = {}
    for key, mask in masks.items():
        component, block = split_key(key)
        renamed[names.get(component, component) + block] = mask
    if len(renamed) < len(masks):
        raise ScheduleError(
            f"names={dict(names)!r} gives two components of the SmoothCache schedule one name"
        )
    return renamed


def split_key(key: str) -> tuple[str, str]:
    """Split a key into component and block, ``("attn1", "-3")``; no block is an empty text."""
    found = KEY.fullmatch(key)
    return (key, "") if found is None else (found["component"], found["block"] or "")
