"""What is known of every gate: its table, its cost, and how far its pictures stray."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dqar_fx
from benchmarks.gates.lineup import Gated
from benchmarks.harness.machine import Machine
from benchmarks.harness.macs import count_trajectories
from benchmarks.harness.pipelines import Task
from benchmarks.main_job.rows import write_out
from benchmarks.quality.judge import measure_psnr_db


@dataclass(frozen=True)
class Row:
    """One gate or schedule.

    Attributes:
        name: Who.
        setting: Its thresholds in words.
        schedule: Its branch table written out, for `dqar_fx.Schedule.from_actions`.
        reuse_ratio: Share of steps and sites that reuse.
        distinct_rows: Of the branch table.
        ceiling: Multiply-accumulates of the untransformed trajectory by its own.
        psnr_db: Against the untransformed model's pictures of the same seeds.
        psnr_db_min: That of the farthest picture.
    """

    name: str
    setting: str
    schedule: str
    reuse_ratio: float
    distinct_rows: int
    ceiling: float
    psnr_db: float
    psnr_db_min: float

    def to_json(self, shared: dict[str, Any]) -> str:
        """One flat JSON object; an infinite PSNR is the text ``inf``."""
        values = asdict(self) | shared
        for name in ("psnr_db", "psnr_db_min"):
            if values[name] == math.inf:
                values[name] = "inf"
        return json.dumps(values, allow_nan=False)


def measure(pipe: Any, task: Task, gated: Sequence[Gated]) -> list[Row]:
    """Count and generate, in eager mode; nothing is captured twice.

    Args:
        pipe: The pipeline with its untransformed model.
        task: The pictures.
        gated: Who takes part.
    """
    original, steps = pipe.transformer, gated[0].schedule.num_steps
    call = task.example_call(original)
    macs = count_trajectories(original, call, [each.schedule for each in gated])
    whole = steps * macs.untransformed_step
    reference = task.generate(pipe, steps)
    denoiser = dqar_fx.transform(original, gated[0].schedule)
    rows = []
    for each, own in zip(tqdm(gated, desc="pictures"), macs.trajectories, strict=True):
        denoiser = denoiser.with_schedule(each.schedule)
        with using(pipe, denoiser):
            images = task.generate(pipe, steps)
        rows.append(
            Row(
                name=each.name,
                setting=each.setting,
                schedule=write_out(each.table),
                reuse_ratio=each.table.reuse_ratio,
                distinct_rows=len(each.table.rows),
                ceiling=whole / own,
                psnr_db=measure_psnr_db(images, reference),
                psnr_db_min=min(map(measure_psnr_db, images, reference)),
            )
        )
    return rows


@contextmanager
def using(pipe: Any, module: torch.nn.Module) -> Iterator[None]:
    """Put another model into a pipeline, while inside."""
    original = pipe.transformer
    pipe.transformer = module
    try:
        yield
    finally:
        pipe.transformer = original


def write_rows(
    rows: Sequence[Row], settings: dict[str, Any], machine: Machine, path: Path
) -> None:
    """Write one line of JSON per row."""
    shared = settings | asdict(machine)
    path.write_text("".join(f"{row.to_json(shared)}\n" for row in rows))
