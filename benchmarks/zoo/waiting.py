"""Trials that do not hold yet, and why: one that holds of a sudden is to be struck out."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.zoo.specimens import FOLDER


@dataclass(frozen=True)
class Waiting:
    """What is known of one class.

    Attributes:
        trials: Those that do not hold.
        because: What is said of each of them, in part.
        note: Why, in words for a reader.
        tier: How the class is captured.
    """

    trials: Sequence[str] = ()
    because: str = ""
    note: str = ""
    tier: str = "graph"


@cache
def waiting() -> dict[str, Waiting]:
    """By class; those that are not there pass all trials as one graph."""
    table = tomllib.loads((FOLDER / "waiting.toml").read_text("utf-8"))
    return {name: Waiting(**entry) for name, entry in table.items()}
