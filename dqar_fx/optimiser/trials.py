"""Trying tables: pictures of a pipeline with one, against those of the untransformed model."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.calibration.calibrate import quiet, replaced, seeded_apart
from dqar_fx.errors import DqarError
from dqar_fx.guidance.guided import GuidedDenoiser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.guidance.guidance import Guidance
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

    Around = Callable[[Callable[..., Any], torch.device], Callable[..., Any]]


@dataclass(frozen=True)
class Job:
    """What a pipeline generates.

    Attributes:
        pipeline: A diffusers pipeline; as before after each run.
        inputs: Prompts or labels.
        seed: Of the noise: each picture has a generator of its own.
        num_steps: Denoising steps, ``num_inference_steps``.
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
        """All pictures ``[pictures, ...]``, float32, in the range that the pipeline gives.

        Args:
            transformer: Takes the place of the pipeline's own.
            scheduler: Likewise; a copy of the pipeline's by default.

        Raises:
            DqarError: The pipeline gives no arrays of pictures.
        """
        own = copy.deepcopy(self.pipeline.scheduler) if scheduler is None else scheduler
        pictures = []
        with (
            quiet(self.pipeline),
            replaced(self.pipeline, transformer=transformer, scheduler=own),
            seeded_apart(),
        ):
            for start in range(0, len(self.inputs), self.batch_size):
                batch = list(self.inputs[start : start + self.batch_size])
                pictures.append(self._run_batch(batch, self.seed + start))
        return torch.cat(pictures)

    def _run_batch(self, batch: list[Any], seed: int) -> torch.Tensor:
        torch.manual_seed(seed)  # of schedulers that are given no generator
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(batch))]
        given = {"num_inference_steps": self.num_steps, "output_type": "np", **self.call}
        found = self.pipeline(batch, generator=generators, **given)
        images = getattr(found, "images", getattr(found, "frames", None))
        if images is None or not hasattr(images, "shape"):
            raise DqarError(
                f"{type(self.pipeline).__name__} gave {type(found).__name__} without images "
                'or frames as arrays. Expected a pipeline that knows output_type="np"'
            )
        return torch.as_tensor(images).float().cpu()


@dataclass
class Trials:
    """Qualities of schedules on a job; each is tried once, also over restarts.

    Attributes:
        job: What is generated.
        denoiser: Transformed with as many kept steps as any schedule reads.
        salt: Tells this job and model from others in the same file.
        file: Where qualities are kept, or None.
    """

    job: Job
    denoiser: Denoiser
    salt: str = ""
    file: Path | None = None
    known: dict[str, float] = field(default_factory=dict)
    pictures_run: int = 0
    _right: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            for line in self.file.read_text().splitlines():
                row = json.loads(line)
                self.known[row["table"]] = row["psnr_db"]

    def psnr(
        self, schedule: Schedule, paths: Sequence[str], guidance: Guidance | None = None
    ) -> float:
        """Peak signal-to-noise ratio of all pictures together, in decibels."""
        key = self.salt + identity(schedule.resolve(paths), guidance)
        if key not in self.known:
            self.known[key] = psnr(self.right, self.pictures(schedule, guidance))
            self._write(key)
        return self.known[key]

    @property
    def right(self) -> torch.Tensor:
        """The pictures of the untransformed model."""
        if self._right is None:
            self._right = self.job.run(self.job.pipeline.transformer)
        return self._right

    def capture(self) -> None:
        """Run the denoiser as it is, so that every signature of the job is captured once."""
        self._run(self.denoiser)

    def pictures(
        self,
        schedule: Schedule,
        guidance: Guidance | None = None,
        around: Around | None = None,
    ) -> torch.Tensor:
        """The pictures with a schedule.

        Args:
            schedule: The schedule.
            guidance: What the unconditional stream does; None for what it does already.
            around: Wraps the forward of the denoiser, given its device.
        """
        if isinstance(self.denoiser, GuidedDenoiser):
            tried: Denoiser = self.denoiser.with_schedule(schedule, guidance=guidance)
        else:
            tried = self.denoiser.with_schedule(schedule)
        if around is not None:
            tried.forward = around(tried.forward, tried.device)
        return self._run(tried)

    def _run(self, denoiser: Denoiser) -> torch.Tensor:
        self.pictures_run += len(self.job.inputs)
        return run_attached(self.job, denoiser)

    def _write(self, key: str) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as lines:
                row = {"table": key, "psnr_db": self.known[key]}
                lines.write(json.dumps(row) + "\n")


def run_attached(job: Job, denoiser: Denoiser, scheduler: Any = None) -> torch.Tensor:
    """All pictures of a denoiser, which follows the scheduler where that counts its steps."""
    own = copy.deepcopy(job.pipeline.scheduler) if scheduler is None else scheduler
    if hasattr(own, "step_index"):
        denoiser.attach_scheduler(own)
    return job.run(denoiser, own)


def identity(table: BranchTable, guidance: Guidance | None) -> str:
    """A text that is equal for equal tables and guidance."""
    arrays = (table.actions, table.orders, table.weights)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
    digest.update(repr((table.sites, table.method, table.actions.shape)).encode())
    if guidance is not None:
        digest.update(repr(guidance).encode())
    return digest.hexdigest()[:32]


def psnr(right: torch.Tensor, other: torch.Tensor) -> float:
    """``10 log10(1 / mean squared difference)`` of all values, which lie in [0, 1].

    Of all pictures together, so that one that is ruined is not made up for by the others.
    """
    square = (right - other).double().square().mean()
    return float(-10 * torch.log10(square.clamp(min=1e-12)))


def together(one_db: float, other_db: float) -> float:
    """The PSNR of two equally large sets of pictures, from those of each."""
    squares = (10 ** (-db / 10) for db in (one_db, other_db))
    return -10 * math.log10(sum(squares) / 2)
