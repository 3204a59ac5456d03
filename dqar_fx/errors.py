"""Errors of the package: each says what, where, found and expected, and what to do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class DqarError(ValueError):
    """Base class: something in the user's model, schedule or call does not fit."""


class CaptureError(DqarError):
    """The model cannot be captured as one graph."""


class SiteError(DqarError):
    """No site is found, or a pattern selects none."""


class ScheduleError(DqarError):
    """A schedule or branch table breaks a rule, or has the wrong size for the model."""


class OptionError(DqarError):
    """The name of a cache format or of a lowering is unknown."""


class StepError(DqarError):
    """The step of a call is unknown, or lies outside of the branch table."""


@contextmanager
def reading_json(name: str, kind: type) -> Iterator[None]:
    """Whatever cannot be read inside is not what the ``to_json`` of that kind wrote.

    Raises:
        DqarError: Something cannot be read.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DqarError(
            f"this is no {name} in JSON: {type(error).__name__}: {error}. Expected what "
            f"{kind.__name__}.to_json() gives"
        ) from error


def listing(lines: Sequence[object]) -> str:
    """One line each, indented; "none" for nothing."""
    return "".join(f"\n  {line}" for line in lines) or " none"
