"""What a site does at one step."""

from __future__ import annotations

import enum


class Action(enum.IntEnum):
    """What a site does at one step."""

    COMPUTE = 0
    """Compute, keep nothing."""
    STORE = 1
    """Compute, and keep the site's output (or its keys and values) in its slot."""
    REUSE = 2
    """Read the slot; nothing is computed that it stands for."""
    FORECAST = 3
    """Combine what was kept at the last computed steps; nothing is computed otherwise."""
    COVERED = 4
    """Not evaluated: a larger site around it reads what it keeps."""

    @property
    def letter(self) -> str:
        """One letter for written-out rows: C, S, R, F, or a dot for what is covered."""
        return "." if self is Action.COVERED else self.name[0]


LETTERS = {action.letter: action for action in Action}
"""The action that each letter stands for."""
