"""What is known of a contender so far, on disk after each trajectory."""

from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.harness.store import Piece

WARMUP = 0
"""Number of the trajectory in which everything is compiled."""


@dataclass
class Record:
    """What is known of a contender.

    Attributes:
        piece: Its file.
        facts: What was found out in the warm-up, and ``error`` if something went wrong.
        times: Per repeat, the time of the base's trajectory and of its own.
        images: Pictures of each numbered trajectory.
    """

    piece: Piece
    facts: dict[str, Any] = field(default_factory=dict)
    times: dict[int, tuple[float, float]] = field(default_factory=dict)
    images: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, piece: Piece) -> "Record":
        """What is on disk; nothing of a contender that failed, which is tried again.

        Raises:
            InputError: What is on disk is of another run, or damaged.
        """
        record = cls.read(piece)
        return cls(piece) if record.error is not None else record

    @classmethod
    def read(cls, piece: Piece) -> "Record":
        """All that is on disk, also of a contender that failed.

        Raises:
            InputError: What is on disk is of another run, or damaged.
        """
        if not piece.is_finished():
            return cls(piece)
        notes = piece.read_notes()
        return cls(
            piece,
            notes["facts"],
            {number: (base_s, own_s) for number, base_s, own_s in notes["times"]},
            {int(number): images for number, images in piece.read().items()},
        )

    def note(self, **facts: Any) -> None:
        """Add facts; they are on disk when this returns."""
        self.facts |= facts
        self.save()

    def add(self, number: int, images: torch.Tensor, base_s: float, own_s: float) -> None:
        """Add a timed trajectory; it is on disk when this returns."""
        self.images[number] = images
        self.times[number] = base_s, own_s
        self.save()

    def save(self) -> None:
        """Write all of it."""
        times = [(number, *pair) for number, pair in sorted(self.times.items())]
        tensors = {str(number): images for number, images in self.images.items()}
        self.piece.write(tensors, {"facts": self.facts, "times": times})

    @property
    def error(self) -> str | None:
        """What went wrong."""
        error: str | None = self.facts.get("error")
        return error

    def lacks(self, number: int) -> bool:
        """Whether a repeat is missing that can be made."""
        return self.error is None and number not in self.times
