"""A case, what it finds, and its row."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.accelerator.abilities import Abilities, ask
from benchmarks.accelerator.scales import Scale
from benchmarks.harness.machine import Machine
from benchmarks.harness.rows import SHARED

HOLDS, REFUTED, MEASURED = "holds", "refuted", "measured"
LACKING, FAILED = "not here", "failed"


@dataclass(frozen=True)
class Finding:
    """What a case has found.

    Attributes:
        holds: Whether what is claimed holds; None for a figure.
        word: In a few words.
        values: Figures by name, as JSON has them.
    """

    holds: bool | None
    word: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """What its row says."""
        if self.holds is None:
            return MEASURED
        return HOLDS if self.holds else REFUTED


@dataclass
class Stage:
    """Where cases run.

    Attributes:
        device: The device.
        scale: How large everything is.
        folder: Where files go that a case writes.
        deadline: Value of ``time.monotonic()`` by which a case should be done.
        made: What cases share, by a key of any kind; emptied between parts.
    """

    device: torch.device
    scale: Scale
    folder: Path
    deadline: float = float("inf")
    made: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def abilities(self) -> Abilities:
        """What the device can do."""
        return ask(self.device)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What a function makes; it is called once for a key."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def clear(self) -> None:
        """Let go of all that cases have left: models, graphs, code and memory."""
        self.made.clear()
        torch._dynamo.reset()  # or what was compiled would count against limits
        gc.collect()
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()


@dataclass(frozen=True)
class Case:
    """Something that is tried.

    Attributes:
        name: Within its part; no two are equal.
        claim: Key of the claim that it is about.
        run: Tries it.
        needs: Abilities of the device without which it cannot be tried.
    """

    name: str
    claim: str
    run: Callable[[Stage], Finding]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Cases that belong together.

    Attributes:
        name: What the command line calls it.
        weight: Its share of the time, relative to other parts.
        list_cases: All cases of a scale, those first that are worth most.
    """

    name: str
    weight: float
    list_cases: Callable[[Scale], list[Case]]


@dataclass(frozen=True)
class Row:
    """What became of one case.

    Attributes:
        part: Its part.
        case: Its name.
        claim: Key of the claim that it is about.
        outcome: ``holds``, ``refuted``, ``measured``, ``not here`` or ``failed``.
        word: What was found, in a few words.
        values: Figures.
        seconds: What it took.
        error: The traceback of a failure, or None.
        scale: Name of the scale.
        machine: Where.
    """

    part: str
    case: str
    claim: str
    outcome: str
    word: str
    values: dict[str, Any]
    seconds: float
    error: str | None
    scale: str
    machine: Machine = field(metadata=SHARED)

    @property
    def key(self) -> str:
        """What no other row has."""
        return key_of(self.part, self.case)


def key_of(part: str, case: str) -> str:
    """The name of a case among all."""
    return f"{part}/{case}"
