"""The times: all configurations side by side, interleaved, once; kept on disk."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.ablation.configurations import BASELINE, Entry
from benchmarks.ablation.options import Options
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.pipelines import model_name
from benchmarks.harness.rows import from_values, to_values
from benchmarks.harness.store import Piece
from benchmarks.harness.trials import Arena, Trial, compete
from benchmarks.main_job.rows import Setting, make_rows

Times = dict[str, dict[str, Any]]
"""Values of a row of the main job, by configuration."""


def measure_times(
    arena: Arena, entries: Sequence[Entry], options: Options, piece: Piece
) -> None:
    """Time all configurations and write what was measured, unless that is on disk already.

    Raises:
        InputError: What is on disk is of another run.
    """
    if piece.is_finished() and not any(row["error"] for row in piece.read_notes()):
        print(f"times are those of {piece.path}: delete it to take others", file=sys.stderr)
        return
    deadline = time.perf_counter() + options.budget_s
    trials = [Trial(entry.contender, entry.facts.macs) for entry in entries]
    compete(arena, trials, repeats=options.repeats, deadline=deadline)
    rows = make_rows(trials, setting_of(arena, options), describe_machine(options.device))
    piece.write(
        {trial.contender.name: trial.images for trial in trials if trial.images is not None},
        [to_values(row) for row in rows],
    )


def setting_of(arena: Arena, options: Options) -> Setting:
    """What all times of this run share."""
    return Setting(
        model=model_name(options.model),
        dtype=options.dtype,
        lowering=options.lowering,
        guidance=options.guidance,
        seeds=arena.task.seeds,
        labels=arena.task.labels,
        batch=arena.task.batch,
        base=BASELINE,
    )


def read_times(piece: Piece) -> tuple[Times, dict[str, torch.Tensor]]:
    """Times and pictures by configuration; none of either if nothing was timed.

    Raises:
        InputError: They are of another run, or damaged.
    """
    if not piece.is_finished():
        return {}, {}
    return {row["name"]: row for row in piece.read_notes()}, piece.read()


def machine_of(times: Times, device: torch.device) -> Machine:
    """Where the times were taken; this machine if there are none."""
    for row in times.values():
        return from_values(Machine, row)
    return describe_machine(device)
