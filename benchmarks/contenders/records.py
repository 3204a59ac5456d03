"""What is known of a contender so far, on disk after each trajectory, and where it lies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation.protocol import GROUP_STRIDE, SEED
from benchmarks.contenders.contenders import Contender
from benchmarks.harness.machine import count_cores, name_processor
from benchmarks.harness.pipelines import model_name
from benchmarks.harness.store import Piece, file_name, take_fingerprint

WARMUP = 0
"""Number of the trajectory in which everything is compiled."""


@dataclass(frozen=True)
class Plan:
    """Where the pieces of a run lie on disk, and what tells them from those of another run.

    Attributes:
        out: Folder of the run.
        shared: Settings that all pieces follow from.
    """

    out: Path
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, options: Any, **settings: Any) -> "Plan":
        """The plan for a pipeline: where and with what it runs, and settings of its own."""
        shared = {
            "model": model_name(options.model),
            "weights": take_fingerprint(pipe.transformer, pipe.vae),
            "device": options.device.type,
            "processor": name_processor(options.device),
            "cores": count_cores(),
            "threads": torch.get_num_threads(),
            "dtype": options.dtype,
            "steps": options.steps,
            "guidance": options.guidance,
            "samples": options.samples,
            **settings,
            "scheduler_class": type(pipe.scheduler).__name__,
            "torch": str(torch.__version__),
            "diffusers": version("diffusers"),
            "cache_dit": find_version("cache-dit"),
        }
        return cls(options.out, shared)

    def times(self, contender: Contender) -> Piece:
        """The piece of a contender's times, pictures and facts."""
        return self._piece("rows", contender, "", {})

    def pictures(self, contender: Contender, number: int, group: int | None = None) -> Piece:
        """The piece of a number of pictures that are judged: all, or those of a seed group."""
        suffix = "" if group is None else f"-{group}"
        own = {"first_seed": SEED + GROUP_STRIDE * (group or 0), "pictures": number}
        return self._piece("images", contender, suffix, own)

    def _piece(self, folder: str, contender: Contender, suffix: str, own: Any) -> Piece:
        name = f"{file_name(contender.name)}{suffix}.safetensors"
        return Piece(self.out / folder / name, {**self.shared, **contender.identity, **own})


def find_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
    def read(cls, piece: Piece, *, retry: bool = False) -> "Record":
        """What is on disk; to be tried again, nothing of a contender that failed.

        Raises:
            InputError: What is on disk is of another run, or damaged.
        """
        if not piece.is_finished():
            return cls(piece)
        notes = piece.read_notes()
        times = {number: (base_s, own_s) for number, base_s, own_s in notes["times"]}
        images = {int(number): images for number, images in piece.read().items()}
        record = cls(piece, notes["facts"], times, images)
        return cls(piece) if retry and record.error is not None else record

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
