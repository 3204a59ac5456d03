"""Rules that are written out: one letter per step and site, and the ways to spell them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .action import LETTERS, Action
from .rules import AnyModelRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from .rules import Mask, Moment

    Letters = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class WrittenActions(AnyModelRule):
    """Actions written out, one letter per step and site or per step alone.

    Attributes:
        letters: ``[steps, sites or 1]``, see `Action.letter`.
        strict: Whether the letters stand as they are. If not, a C becomes a STORE where a
            later cell reads it.
        orders: Orders of the forecasts, ``[steps or 1, sites or 1]``.
        weights: Weights of the forecasts, ``[steps, sites, points]``; empty where the
            forecast method weighs what is kept.
        reasons: Why each letter is what it is, ``[steps, sites or 1]``; empty where that is
            not known.
    """

    letters: Letters
    strict: bool
    orders: tuple[tuple[int, ...], ...] = ((0,),)
    weights: tuple[tuple[tuple[float, ...], ...], ...] = ()
    reasons: tuple[tuple[str, ...], ...] = ()

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
        """Allow each site that has an R or an F at this step."""
        return np.isin(self.spread(len(moment.sites))[moment.step], ("R", "F"))

    def why(self, moment: Moment, site: int) -> str:
        """Return the reason that was written beside the letter or, without one, the letter."""
        if not self.reasons:
            return f"written out: {self.spread(len(moment.sites))[moment.step, site]}"
        reasons = self.reasons[moment.step]
        return reasons[site if len(reasons) > 1 else 0]


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
