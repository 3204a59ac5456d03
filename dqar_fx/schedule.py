"""Schedules: rules that say, for each step and site, whether a kept output may be reused.

A rule is a pure function of step and site. `Schedule.resolve` turns it into a verified
`BranchTable`: it refreshes what grows older than ``max_age``, and marks as STORE exactly
those computations that a later REUSE reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dqar_fx.passes import Action

from .errors import ScheduleError
from .table import BranchTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

LETTERS = {action.letter: action for action in Action}


class Rule(Protocol):
    """Which cells may reuse: bool ``[steps, sites]``."""

    def may_reuse(self, num_steps: int, num_sites: int) -> NDArray[np.bool_]:
        """The mask for a trajectory and a number of sites."""


@dataclass(frozen=True)
class Linear:
    """Site ``i`` of ``n`` reuses from ``warmup + i / (n - 1) * (full_from - warmup)`` on.

    Rounded to whole steps, half up.
    """

    warmup: int
    full_from: int

    def may_reuse(self, num_steps: int, num_sites: int) -> NDArray[np.bool_]:
        """Shallow sites first, deep sites last."""
        deepest = max(num_sites - 1, 1)
        delay = np.arange(num_sites) * (self.full_from - self.warmup)
        start = self.warmup + (2 * delay + deepest) // (2 * deepest)  # exact, half up
        return np.arange(num_steps)[:, None] >= start[None, :]


@dataclass(frozen=True)
class Interval:
    """After the warm-up every site computes at each ``every``-th step and reuses between."""

    every: int
    warmup: int

    def may_reuse(self, num_steps: int, num_sites: int) -> NDArray[np.bool_]:
        """The same for all sites."""
        step = np.arange(num_steps)
        mask = (step >= self.warmup) & ((step - self.warmup + 1) % self.every != 0)
        return np.repeat(mask[:, None], num_sites, axis=1)


@dataclass(frozen=True)
class Written:
    """Actions written out: letters ``[steps, sites or 1]``; C leaves storing to `resolve`."""

    letters: tuple[tuple[str, ...], ...]
    strict: bool
    """Whether each action stands as it is; else C is stored where a later R reads it."""

    def may_reuse(self, num_steps: int, num_sites: int) -> NDArray[np.bool_]:
        """Where R is written."""
        return np.asarray(self.spread(num_sites) == "R")

    def spread(self, num_sites: int) -> NDArray[np.str_]:
        """Letters ``[steps, sites]``."""
        letters = np.array(self.letters)
        if letters.shape[1] not in (1, num_sites):
            raise ScheduleError(
                f"the written-out schedule has {letters.shape[1]} sites but the model has "
                f"{num_sites}; write one column per site, or a single one for all"
            )
        return np.broadcast_to(letters, (letters.shape[0], num_sites))


@dataclass(frozen=True)
class Schedule:
    """How a trajectory of ``num_steps`` steps reuses attention.

    Attributes:
        num_steps: Steps of the trajectory.
        rule: Which cells may reuse.
        max_age: Steps that a kept output may live; older ones are computed again. None for
            no limit.
    """

    num_steps: int
    rule: Rule
    max_age: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, num_steps=self.num_steps)
        if self.max_age is not None:
            check_at_least(1, max_age=self.max_age)
        if isinstance(self.rule, Written) and len(self.rule.letters) != self.num_steps:
            raise ScheduleError(
                f"actions are written out for {len(self.rule.letters)} steps but num_steps is "
                f"{self.num_steps}"
            )

    @classmethod
    def linear(
        cls,
        num_steps: int,
        warmup: int = 5,
        *,
        full_from: int | None = None,
        max_age: int | None = None,
    ) -> Schedule:
        """The report's schedule: reuse spreads from shallow to deep after the warm-up.

        Args:
            num_steps: Steps of the trajectory.
            warmup: First steps, which compute everything.
            full_from: Step from which all sites reuse; default half-way between the end of
                the warm-up and the end of the trajectory.
            max_age: Steps that a kept output may live.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            DQAR report, "Layer scheduling strategy".
        """
        check_at_least(1, num_steps=num_steps, warmup=warmup)
        late = warmup + max(num_steps - warmup, 0) // 2 if full_from is None else full_from
        check_at_least(warmup, full_from=late)
        return cls(num_steps, Linear(warmup, late), max_age)

    @classmethod
    def interval(
        cls, num_steps: int, every: int, *, warmup: int = 1, max_age: int | None = None
    ) -> Schedule:
        """Compute at each ``every``-th step after the warm-up, reuse between.

        Args:
            num_steps: Steps of the trajectory.
            every: Distance of computed steps; 1 computes always.
            warmup: First steps, which compute everything.
            max_age: Steps that a kept output may live.

        Raises:
            ScheduleError: An argument is out of range.

        Source:
            FORA, arXiv 2407.01425; Pyramid Attention Broadcast, arXiv 2408.12588.
        """
        check_at_least(1, num_steps=num_steps, every=every, warmup=warmup)
        return cls(num_steps, Interval(every, warmup), max_age)

    @classmethod
    def compute_all(cls, num_steps: int) -> Schedule:
        """Never reuse: the untransformed model, as a branch table."""
        return cls(num_steps, Interval(every=1, warmup=num_steps))

    @classmethod
    def from_actions(
        cls, actions: str | Sequence[str] | ArrayLike, *, max_age: int | None = None
    ) -> Schedule:
        """A schedule written out.

        Args:
            actions: A text such as ``"CCRRCRRC"``, one letter per step, for all sites; several
                texts (or lines), one per site; a bool array, True for reuse; or an array of
                `Action`, ``[steps, sites]`` or ``[steps]``. In texts of C and R and in bool
                arrays a computation is stored where the next step reads it; texts with an S
                and arrays of `Action` are taken as they stand.
            max_age: Steps that a kept output may live. A cell that is older is an error here,
                since nothing written out is changed.

        Raises:
            ScheduleError: A letter or shape that is none of these.
        """
        lines = actions.split() if isinstance(actions, str) else actions
        if isinstance(lines, list | tuple) and lines and isinstance(lines[0], str):
            letters = letters_of_texts([str(line) for line in lines])
            strict = any("S" in line for line in lines)
            return cls(len(letters), Written(letters, strict), max_age)
        try:
            array = np.atleast_1d(np.asarray(lines))
        except ValueError as error:
            raise ScheduleError(
                f"actions need rows of one length, [steps, sites]: {error}"
            ) from None
        if array.dtype.kind in "OUS":
            raise ScheduleError(
                f"actions must be letters in texts, bools or dqar_fx.Action, found {actions!r}"
            )
        strict = array.dtype != np.bool_
        letters = letters_of_array(array if strict else array * int(Action.REUSE))
        return cls(len(letters), Written(letters, strict), max_age)

    def resolve(self, sites: Sequence[str]) -> BranchTable:
        """The branch table for sites with these paths.

        Raises:
            ScheduleError: The rule has another number of sites, or its table breaks a rule.
        """
        paths = tuple(str(path) for path in sites)
        if isinstance(self.rule, Written):
            actions = self.resolve_written(self.rule, len(paths))
        else:
            may = self.rule.may_reuse(self.num_steps, len(paths))
            if may.shape != (self.num_steps, len(paths)):
                raise ScheduleError(
                    f"{self.rule} gave a mask of shape {list(may.shape)}, expected [steps, "
                    f"sites] = {[self.num_steps, len(paths)]}"
                )
            actions = refresh(may, self.max_age)
        return BranchTable(actions, paths, self.max_age)

    def resolve_written(self, rule: Written, num_sites: int) -> NDArray[np.int8]:
        """Actions as written; where C may stand for a STORE, that one is found."""
        letters = rule.spread(num_sites)
        actions = np.vectorize(lambda letter: int(LETTERS[letter]))(letters).astype(np.int8)
        return actions if rule.strict else mark_stores(actions)


def refresh(may_reuse: NDArray[np.bool_], max_age: int | None) -> NDArray[np.int8]:
    """Reuse where the rule allows it, something is kept, and it is young enough."""
    num_steps, num_sites = may_reuse.shape
    actions = np.zeros((num_steps, num_sites), np.int8)
    computed = np.full(num_sites, -1)
    for step in range(num_steps):
        young = True if max_age is None else step - computed <= max_age
        reuse = may_reuse[step] & (computed >= 0) & young
        actions[step, reuse] = Action.REUSE
        computed[~reuse] = step
    return mark_stores(actions)


def mark_stores(actions: NDArray[np.int8]) -> NDArray[np.int8]:
    """COMPUTE becomes STORE where the next step reuses."""
    marked = actions.copy()
    followed = np.zeros_like(actions, dtype=bool)
    followed[:-1] = actions[1:] == Action.REUSE
    marked[followed & (actions == Action.COMPUTE)] = Action.STORE
    return marked


def letters_of_texts(lines: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Letters ``[steps, sites]`` of one text per site."""
    if len({len(line) for line in lines}) != 1:
        raise ScheduleError(
            f"texts of one schedule need one length, found {[len(line) for line in lines]}"
        )
    for site, line in enumerate(lines):
        for step, letter in enumerate(line):
            if letter not in LETTERS:
                raise ScheduleError(
                    f"step {step}, site {site}: {letter!r} is no action; "
                    f"known are {', '.join(f'{k} ({v.name})' for k, v in LETTERS.items())}"
                )
    return tuple(zip(*lines, strict=True))


def letters_of_array(array: NDArray[Any]) -> tuple[tuple[str, ...], ...]:
    """Letters ``[steps, sites]`` of an array of actions."""
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or columns.size == 0:
        raise ScheduleError(
            f"actions need shape [steps, sites] or [steps], found {list(array.shape)}"
        )
    unknown = np.argwhere(~np.isin(columns, list(Action)))
    if len(unknown):
        step, site = map(int, unknown[0])
        raise ScheduleError(
            f"step {step}, site {site}: {columns[step, site].item()!r} is no action; "
            f"known are {', '.join(f'{a.value} ({a.name})' for a in Action)}"
        )
    return tuple(tuple(Action(int(a)).letter for a in row) for row in columns)


def check_at_least(minimum: int, **values: int) -> None:
    """Raise if a named value is no integer or too small."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ScheduleError(f"{name} must be an integer, found {value!r}")
        if value < minimum:
            raise ScheduleError(f"{name} must be at least {minimum}, found {value}")
