"""Errors and warnings: each says what, where, found and expected, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Name = TypeVar("Name", str, str | None)


class DqarError(ValueError):
    """Base class: something in the user's model, schedule or call does not fit."""


class CaptureError(DqarError):
    """The model cannot be captured, as one graph or block by block."""


class SiteError(DqarError):
    """No site is found, or a pattern selects none."""


class ScheduleError(DqarError):
    """A schedule or branch table breaks a rule, or has the wrong size for the model."""


class OptionError(DqarError):
    """An option is unknown, or does not go with the model or with other options."""


class StepError(DqarError):
    """The step of a call is unknown, or lies outside of the branch table."""


class ForecastNoiseWarning(UserWarning):
    """Forecasts amplify the rounding of what is kept beyond the change that they predict."""


def check_known(
    what: str,
    value: object,
    known: Iterable[Name],
    error: type[DqarError] = OptionError,
    *,
    note: str = "",
) -> Name:
    """A value that has to be one of a few names.

    Args:
        what: What the message says before the value, such as ``"cache="``.
        value: Anything that was given.
        known: The names; None among them where it may be left out.
        error: What is raised for another value.
        note: What the message says after the names.

    Raises:
        DqarError: The value is none of the names.
    """
    names = tuple(known)
    for name in names:
        if isinstance(value, type(name)) and value == name:
            return name
    listed = ", ".join(map(str, names))
    raise error(f"{what}{value!r} is unknown; known are {listed}{note}")


def listing(lines: Sequence[object]) -> str:
    """One line each, indented; "none" for nothing."""
    return "".join(f"\n  {line}" for line in lines) or " none"
