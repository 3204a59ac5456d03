"""Trying schedules: a pipeline's pictures against those of the untransformed model."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.calibration.pipeline_run import substitute
from dqar_fx.errors import DqarError
from dqar_fx.guidance.guided import GuidedDenoiser

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.guidance.guidance import Guidance
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable


@dataclass(frozen=True)
class PipelineJob:
    """What a pipeline generates.

    Attributes:
        pipeline: A diffusers pipeline, which is as before after each run.
        inputs: Prompts or class labels.
        seed: Seed of the noise; each picture has a generator of its own.
        num_steps: Denoising steps (``num_inference_steps``).
        batch_size: Pictures per run.
        call: More arguments of the pipeline.
    """

    pipeline: Any
    inputs: tuple[Any, ...]
    seed: int
    num_steps: int
    batch_size: int
    call: dict[str, Any]

    def run(self, transformer: nn.Module, scheduler: Any = None) -> torch.Tensor:
        """Generate all pictures: float32 ``[pictures, ...]``, in the pipeline's range.

        Raises:
            DqarError: The pipeline gives no arrays of pictures.
        """
        pictures = []
        with substitute(self.pipeline, transformer, scheduler):
            for start in range(0, len(self.inputs), self.batch_size):
                batch = list(self.inputs[start : start + self.batch_size])
                pictures.append(self._run_batch(batch, self.seed + start))
        return torch.cat(pictures)

    def _run_batch(self, batch: list[Any], seed: int) -> torch.Tensor:
        torch.manual_seed(seed)  # for schedulers that are given no generator
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(batch))]
        call = {"num_inference_steps": self.num_steps, "output_type": "np", **self.call}
        result = self.pipeline(batch, generator=generators, **call)
        images = getattr(result, "images", getattr(result, "frames", None))
        if images is None or not hasattr(images, "shape"):
            raise DqarError(
                f"{type(self.pipeline).__name__} gave {type(result).__name__} without images "
                'or frames as arrays. Expected a pipeline that knows output_type="np"'
            )
        return torch.as_tensor(images).float().cpu()


@dataclass
class ScheduleTrials:
    """Measures how good the pictures of schedules are; each is tried once, also over restarts.

    Attributes:
        job: What is generated.
        denoiser: A denoiser whose graphs keep as many steps as any schedule reads.
        salt: Tells this job and model from others in the same file.
        file: The file that PSNRs are kept in, or None.
        known: PSNR in decibels of the schedules that were tried, by a digest.
    """

    job: PipelineJob
    denoiser: Denoiser
    salt: str = ""
    file: Path | None = None
    known: dict[str, float] = field(default_factory=dict)
    _right: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            for line in self.file.read_text().splitlines():
                row = json.loads(line)
                self.known[row["table"]] = row["psnr_db"]

    def psnr(
        self, schedule: Schedule, paths: Sequence[str], guidance: Guidance | None = None
    ) -> float:
        """The peak signal-to-noise ratio of all pictures together, in decibels."""
        key = self.salt + digest_of(schedule.resolve(paths), guidance)
        if key not in self.known:
            self.known[key] = psnr(self.right, self.pictures(schedule, guidance))
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a") as lines:
                    lines.write(json.dumps({"table": key, "psnr_db": self.known[key]}) + "\n")
        return self.known[key]

    @property
    def right(self) -> torch.Tensor:
        """The pictures of the untransformed model: float32 ``[pictures, ...]``."""
        if self._right is None:
            self._right = self.job.run(self.job.pipeline.transformer)
        return self._right

    def capture(self) -> None:
        """Run the denoiser as it is, which captures every input signature of the job."""
        self.job.run(self.denoiser)

    def pictures(self, schedule: Schedule, guidance: Guidance | None = None) -> torch.Tensor:
        """Generate the pictures of a schedule: float32 ``[pictures, ...]``."""
        return self.job.run(self.of(schedule, guidance))

    def of(self, schedule: Schedule, guidance: Guidance | None = None) -> Denoiser:
        """The denoiser with a schedule."""
        if isinstance(self.denoiser, GuidedDenoiser):
            return self.denoiser.with_schedule(schedule, guidance=guidance)
        return self.denoiser.with_schedule(schedule)


def digest_of(table: BranchTable, guidance: Guidance | None) -> str:
    """Digest a table and guidance: equal text for equal ones."""
    arrays = (table.actions, table.orders, table.weights)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
    how = (table.method, table.damping) if table.damping else (table.method,)
    digest.update(repr((table.sites, *how, table.actions.shape)).encode())
    if guidance is not None:
        digest.update(repr(guidance).encode())
    return digest.hexdigest()[:32]


def psnr(right: torch.Tensor, other: torch.Tensor) -> float:
    """Compute ``10 log10(1 / mean squared difference)`` of all values, which lie in [0, 1].

    It is taken of all pictures together, so that the others do not make up for one that is
    ruined.
    """
    return to_decibels(float((right - other).double().square().mean()))


def to_decibels(mean_square: float) -> float:
    """The PSNR in decibels of values in [0, 1] that differ by so much; NaN for NaN."""
    return float(-10 * np.log10(np.maximum(mean_square, 1e-12)))


def pooled_psnr(one_db: float, other_db: float) -> float:
    """The PSNR in decibels of two equally large sets of pictures, from that of each."""
    squares = (10 ** (-db / 10) for db in (one_db, other_db))
    return -10 * math.log10(sum(squares) / 2)
