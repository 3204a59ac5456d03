"""Warnings that name the user's own line, wherever in the package they are given."""

from __future__ import annotations

import sys
import warnings
from traceback import walk_stack

PASSING_ON = ("dqar_fx", "torch", "diffusers", "accelerate")
"""Packages whose frames lie between the user's line and what warns."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the line outside of `PASSING_ON` that led here, such as ``pipe(...)``."""
    frames = (frame for frame, _ in walk_stack(sys._getframe()))
    names = (frame.f_globals.get("__name__", "") for frame in frames)
    levels = (
        level
        for level, name in enumerate(names, start=1)
        if name.partition(".")[0] not in PASSING_ON
    )
    warnings.warn(text, category, stacklevel=next(levels, 1))


class Once:
    """Warns of each thing at most once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, text: str, key: str | None = None) -> None:
        """Warn, unless that was done before.

        Args:
            text: The warning.
            key: What it is about, where texts about the same thing differ; None for the text.
        """
        key = text if key is None else key
        if key not in self._said:
            self._said.add(key)
            warn(text)
