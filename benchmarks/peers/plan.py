"""Where the pieces of a run lie on disk, and what tells them from those of another run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.protocol import SEED
from benchmarks.harness.store import Piece, file_name
from benchmarks.pareto.contenders import Contender
from benchmarks.pareto.plan import describe_place
from benchmarks.peers.options import Options


@dataclass(frozen=True)
class Plan:
    """The pieces of a run.

    Attributes:
        out: Folder of the run.
        images: Pictures per row that are judged.
        shared: Settings that all pieces follow from.
    """

    out: Path
    images: int
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, options: Options) -> "Plan":
        """The plan for a pipeline."""
        shared = describe_place(
            pipe,
            options,
            steps=options.steps,
            guidance=options.guidance,
            samples=options.samples,
            unit="eager" if options.eager else "compiled",
        )
        return cls(options.out, options.images, shared)

    def times(self, contender: Contender) -> Piece:
        """The piece of a contender's times, pictures and facts."""
        path = self.out / "rows" / f"{file_name(contender.name)}.safetensors"
        return Piece(path, {**self.shared, **contender.identity})

    def pictures(self, contender: Contender) -> Piece:
        """The piece of the pictures that are judged."""
        path = self.out / "images" / f"{file_name(contender.name)}.safetensors"
        own = {"first_seed": SEED, "pictures": self.images}
        return Piece(path, {**self.shared, **contender.identity, **own})

    def log(self, contender: Contender) -> Path:
        """What a contender's process says."""
        return self.out / "logs" / f"{file_name(contender.name)}.log"
