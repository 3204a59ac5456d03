"""Rows: what was measured of one contender, as one line of JSON and one line of a table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import dqar_fx
from benchmarks.harness.machine import Machine
from benchmarks.harness.rows import SHARED
from benchmarks.harness.timing import describe_speed, take_ratios
from benchmarks.harness.trials import Trial
from benchmarks.quality.judge import measure_max_abs_err, measure_psnr_db


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share beside the machine."""

    model: str
    dtype: str
    lowering: str
    guidance: float
    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    batch: int
    base: str
    inductor_cache: str = "kept between contenders"


@dataclass(frozen=True)
class Row:
    """What was measured of one contender.

    Attributes:
        name: Who it is.
        schedule: Its branch table written out, for `dqar_fx.Schedule.from_actions`: one text
            of all sites, or one per site; None for the untransformed model.
        steps: Denoising steps.
        compile_s: Time of the first trajectory less that of a later one; None where nothing
            was captured or compiled in it.
        step_ms_median: Median over repeats of the trajectory's time by its steps.
        step_ms_p90: The 90th percentile over all single steps.
        repeats: Timed trajectories.
        speed_median: Time of the base by the contender's, each of the same repeat.
        speed_min: The lowest of these.
        speed_max: The highest of these.
        ceiling: Multiply-accumulates of the untransformed trajectory by the contender's.
        macs: Multiply-accumulates of a trajectory.
        reuse_ratio: Share of steps and sites that reuse.
        distinct_rows: Of the branch table.
        graphs: Compiled in the first trajectory.
        breaks: Graph breaks in the first trajectory.
        recompiles: Graphs compiled later.
        cache_bytes: Slots of all streams.
        psnr_db: Against the pictures of the untransformed eager model.
        max_abs_err: Against the same.
        error: What went wrong, or None.
        setting: What all rows share.
        machine: Where and with what.
    """

    name: str
    schedule: str | None
    steps: int
    compile_s: float | None
    step_ms_median: float | None
    step_ms_p90: float | None
    repeats: int
    speed_median: float | None
    speed_min: float | None
    speed_max: float | None
    ceiling: float | None
    macs: int | None
    reuse_ratio: float | None
    distinct_rows: int | None
    graphs: int
    breaks: int
    recompiles: int
    cache_bytes: int | None
    psnr_db: float | None
    max_abs_err: float | None
    error: str | None
    setting: Setting = field(metadata=SHARED)
    machine: Machine = field(metadata=SHARED)


def make_rows(trials: Sequence[Trial], setting: Setting, machine: Machine) -> list[Row]:
    """Rows of all contenders, against the first one's pictures and the base's times."""
    reference = trials[0]
    base = next(trial for trial in trials if trial.contender.name == setting.base)
    return [make_row(trial, base, reference, setting, machine) for trial in trials]


def make_row(
    trial: Trial, base: Trial, reference: Trial, setting: Setting, machine: Machine
) -> Row:
    """The row of one contender."""
    measured: dict[str, Any] = {
        **describe_times(trial),
        **describe_speed(take_ratios(base.trajectory_s, trial.trajectory_s)),
        **describe_table(trial),
        **describe_images(trial.images, reference.images),
    }
    return Row(
        name=trial.contender.name,
        steps=trial.contender.steps,
        repeats=len(trial.step_s),
        ceiling=reference.macs / trial.macs if reference.macs and trial.macs else None,
        macs=trial.macs,
        graphs=trial.compiled.graphs,
        breaks=trial.compiled.breaks,
        recompiles=trial.recompiles,
        error=trial.error,
        setting=setting,
        machine=machine,
        **measured,
    )


def describe_times(trial: Trial) -> dict[str, float | None]:
    """Times of compilation and of steps; None for what did not happen."""
    if not trial.step_s:
        return dict.fromkeys(("compile_s", "step_ms_median", "step_ms_p90"))
    later_s = statistics.median(trial.trajectory_s)
    steps = torch.tensor(trial.step_s, dtype=torch.float64)
    return {
        "compile_s": trial.warmup_s - later_s if trial.was_built else None,
        "step_ms_median": 1e3 * later_s / trial.contender.steps,
        "step_ms_p90": 1e3 * steps.quantile(0.9).item(),
    }


def describe_table(trial: Trial) -> dict[str, Any]:
    """Branch table and slots of a transformed model; None for others."""
    denoiser = trial.module
    if not isinstance(denoiser, dqar_fx.Denoiser) or trial.images is None:
        return dict.fromkeys(("schedule", "reuse_ratio", "distinct_rows", "cache_bytes"))
    table = denoiser.table
    return {
        "schedule": write_out(table),
        "reuse_ratio": table.reuse_ratio,
        "distinct_rows": len(table.rows),
        "cache_bytes": denoiser.cache_bytes * trial.num_streams,
    }


def write_out(table: dqar_fx.BranchTable) -> str:
    """Actions of all sites as one text, or as one text per site where they differ."""
    columns = ["".join(dqar_fx.Action(a).letter for a in site) for site in table.actions.T]
    return columns[0] if len(set(columns)) == 1 else " ".join(columns)


def describe_images(
    images: torch.Tensor | None, reference: torch.Tensor | None
) -> dict[str, float | None]:
    """Distance of pictures from the reference; None where there are none."""
    if images is None or reference is None:
        return dict.fromkeys(("psnr_db", "max_abs_err"))
    return {
        "psnr_db": measure_psnr_db(images, reference),
        "max_abs_err": measure_max_abs_err(images, reference),
    }
