"""Rules that are written out: one letter per step and site, and the ways to spell them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .action import LETTERS, Action
from .forecast import MAX_ORDER
from .rules import AnyModelRule
from .run import find_nearest_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from .rules import Mask, Moment
    from .run import RunShape

    Letters = tuple[tuple[str, ...], ...]

READING, COMPUTING = ("R", "F"), ("C", "S")
"""Letters that read what was kept, and that compute."""


@dataclass(frozen=True)
class WrittenActions(AnyModelRule):
    """Actions written out, one letter per step and site or per step alone.

    Attributes:
        letters: ``[steps, sites or 1]``, see `Action.letter`.
        strict: Whether the letters stand as they are. If not, a C becomes a STORE where a
            later cell reads it.
        orders: Orders of the forecasts, ``[steps or 1, sites or 1]``.
        weights: Weights of the forecasts, ``[steps, sites or 1, points]``; empty where the
            forecast method weighs what is kept.
        reasons: Why each letter is what it is, ``[steps, sites or 1]``; empty where that is
            not known.
        noise: Signal-to-noise ratio of the latent at each step that they were written for;
            empty where that is not known.
        oldest: Where they stand for those of another number of steps: the most steps that a
            kept output may be old. None where they are as they were written.
    """

    letters: Letters
    strict: bool
    orders: tuple[tuple[int, ...], ...] = ((0,),)
    weights: tuple[tuple[tuple[float, ...], ...], ...] = ()
    reasons: tuple[tuple[str, ...], ...] = ()
    noise: tuple[float, ...] = field(default=(), repr=False)
    oldest: int | None = None

    @property
    def max_order(self) -> int:
        """The highest order of a forecast that is written; 0 for none."""
        if not any("F" in row for row in self.letters):
            return 0
        return min(max(map(max, self.orders)), MAX_ORDER)

    def for_run(self, run: RunShape) -> WrittenActions:
        """Return what each row of a run does: what the nearest of the written ones does.

        See `find_nearest_rows`. No output is read that is older, for its share of the run,
        than the oldest that is read as written, since rows that compute may be no one's
        nearest. What is stored has to be found out anew.

        Raises:
            ScheduleError: The run has another number of rows, and weights are written out.
        """
        num_rows = len(self.letters)
        if run.num_rows == num_rows:
            return self
        if self.weights:
            raise ScheduleError(
                f"weights of forecasts are written out for {num_rows} steps, but the run has "
                f"{run.num_rows}: they hold for these steps alone"
            )
        nearest = find_nearest_rows(run, num_rows, self.noise)
        letters = np.where(np.array(self.letters) == "S", "C", np.array(self.letters))
        orders = np.where(letters == "F", np.array(self.orders), 0)
        told = [[f"row {row} of {num_rows}: {t}" for t in self.texts(row)] for row in nearest]
        share = -(-self.oldest_read() * run.num_rows // num_rows)  # rounded up
        return replace(
            self,
            letters=tuple(map(tuple, letters[nearest].tolist())),
            strict=False,
            orders=tuple(map(tuple, orders[nearest].tolist())),
            reasons=tuple(map(tuple, told)),
            noise=run.noise,
            oldest=max(share, 1),
        )

    def texts(self, row: int) -> tuple[str, ...]:
        """Return why each letter of a row is what it is, one for all sites or one per site."""
        written = tuple(f"written out: {letter}" for letter in self.letters[row])
        return self.reasons[row] if self.reasons else written

    def oldest_read(self) -> int:
        """Return the most steps that lie between a read and its site's last computation."""
        letters = np.array(self.letters)
        step = np.arange(len(letters))[:, None]
        computed = np.maximum.accumulate(np.where(np.isin(letters, COMPUTING), step, 0))
        return int(np.max((step - computed)[np.isin(letters, READING)], initial=0))

    def spread(self, num_sites: int) -> NDArray[np.str_]:
        """Return the letters of that many sites, ``[steps, sites]``.

        Raises:
            ScheduleError: The letters are written for another number of sites.
        """
        letters = np.array(self.letters)
        if letters.shape[1] not in (1, num_sites):
            raise ScheduleError(
                f"the written-out schedule has {letters.shape[1]} sites but the model has "
                f"{num_sites}; write one column per site, or a single one for all"
            )
        return np.broadcast_to(letters, (letters.shape[0], num_sites))

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site that has an R or an F at this step, if that is young enough."""
        may = np.isin(self.spread(len(moment.sites))[moment.step], READING)
        return may if self.oldest is None else may & (moment.age <= self.oldest)

    def why(self, moment: Moment, site: int) -> str:
        """Return the reason that was written beside the letter or, without one, the letter."""
        texts = self.texts(moment.step)
        said, age = texts[site if len(texts) > 1 else 0], moment.age[site]
        letter = self.spread(len(moment.sites))[moment.step, site]
        if self.oldest is None or age <= self.oldest or letter not in READING:
            return said
        return f"{said}; what is kept is {age} steps old, beyond {self.oldest}"


def read_letters(actions: str | Sequence[str] | ArrayLike) -> tuple[Letters, bool]:
    """Read actions in any of the spellings that `Schedule.from_actions` takes.

    Returns:
        The letters ``[steps, sites or 1]``, and whether they stand as they are.

    Raises:
        ScheduleError: The actions have another shape, or one of them is unknown.
    """
    lines = actions.split() if isinstance(actions, str) else actions
    if isinstance(lines, list | tuple) and lines and isinstance(lines[0], str):
        letters = letters_of_texts([str(line) for line in lines])
        return letters, any("S" in line for line in lines)
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
    if array.dtype == np.bool_:
        return letters_of_array(array * int(Action.REUSE)), False
    return letters_of_array(array), True


def letters_of_texts(lines: Sequence[str]) -> Letters:
    """Return the letters ``[steps, sites]`` of texts that have one letter per step.

    Raises:
        ScheduleError: The texts differ in length, or a letter is no action.
    """
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


def letters_of_array(array: NDArray[Any]) -> Letters:
    """Return the letters ``[steps, sites or 1]`` of numbers of actions.

    Raises:
        ScheduleError: The array is not ``[steps, sites]`` or ``[steps]``, or a number is no
            action.
    """
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


def read_orders(orders: ArrayLike | None) -> tuple[tuple[int, ...], ...]:
    """Return the orders of written-out forecasts, ``[steps or 1, sites or 1]``; None gives 0.

    Raises:
        ScheduleError: They are not one integer, nor an array of integers with two axes.
    """
    if orders is None:
        return ((0,),)
    array = np.atleast_2d(np.asarray(orders))
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ScheduleError(
            f"orders must be one integer, or [steps, sites] of them, found {orders!r}"
        )
    return tuple(tuple(int(order) for order in row) for row in array)


def read_weights(weights: ArrayLike | None) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Return the weights of written-out forecasts, ``[steps, sites, points]``; None gives ().

    Raises:
        ScheduleError: They are not numbers, or do not have three axes.
    """
    if weights is None:
        return ()
    try:
        array = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"weights need numbers, [steps, sites, points]: {error}") from None
    if array.ndim != 3:
        raise ScheduleError(
            f"weights need shape [steps, sites, points], but have {list(array.shape)}"
        )
    return tuple(tuple(map(tuple, row)) for row in array.tolist())
