"""What is known of every gate: its table, its cost, and how far its pictures stray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

import dqar_fx
from benchmarks.gates.lineup import Gated
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
        with patch.object(pipe, "transformer", denoiser):
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
