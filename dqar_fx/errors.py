"""Errors of the package: each says what, where, found and expected, and what to do."""

from __future__ import annotations


class DqarError(ValueError):
    """Base class: something in the user's model, schedule or call does not fit."""


class CaptureError(DqarError):
    """The model cannot be captured as one graph."""


class SiteError(DqarError):
    """No site is found, or a pattern selects none."""


class ScheduleError(DqarError):
    """A schedule or branch table breaks a rule, or has the wrong size for the model."""


class FormatError(DqarError):
    """The name of a cache format or of a lowering is unknown."""


class StepError(DqarError):
    """The step of a call is unknown, or lies outside of the branch table."""
