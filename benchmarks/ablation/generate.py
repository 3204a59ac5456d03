"""What is measured and kept on disk: the times of all configurations, and their pictures.

Times are taken side by side, interleaved, once. The pictures that are judged are in one file
per configuration and seed group.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.ablation.configurations import BASELINE, Entry
from benchmarks.ablation.options import Options
from benchmarks.ablation.protocol import Protocol
from benchmarks.harness.contenders import Contender, Workshop
from benchmarks.harness.groups import Generate, fill_groups
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.rows import from_values, to_values
from benchmarks.harness.store import Piece, Pieces
from benchmarks.harness.trials import Arena, Trial, compete
from benchmarks.main_job.job import setting_of
from benchmarks.main_job.rows import make_rows
from benchmarks.quality.images import to_bytes

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
    setting = replace(setting_of(options, arena.task), base=BASELINE)
    rows = make_rows(trials, setting, describe_machine(options.device))
    piece.write(
        {trial.contender.name: trial.images for trial in trials if trial.images is not None},
        [to_values(row) for row in rows],
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


@dataclass(frozen=True)
class Studio:
    """Generates pictures.

    Attributes:
        pipe: The pipeline.
        workshop: Builds what runs in it.
        protocol: Which pictures.
        group_size: Pictures in a group.
        batch: Pictures in a batch.
    """

    pipe: Any
    workshop: Workshop
    protocol: Protocol
    group_size: int
    batch: int

    def generate_group(self, contender: Contender, group: int, bar: Any) -> torch.Tensor:
        """Pictures ``[group_size, channels, height, width]`` of a group, uint8."""
        done = []
        for task, count in self.protocol.batches(group, self.group_size, self.batch):
            done.append(to_bytes(task.generate(self.pipe, contender.steps)[:count]))
            bar.update(count)
        return torch.cat(done)

    @contextmanager
    def opened(self, contender: Contender) -> Iterator[Generate]:
        """With a configuration in the pipeline."""
        self.pipe.transformer = self.workshop.build(contender)
        try:
            yield partial(self.generate_group, contender)
        finally:
            self.pipe.transformer = self.workshop.original  # frees what was built


def generate_pictures(
    studio: Studio, entries: Sequence[Entry], pieces: Pieces
) -> dict[str, str]:
    """Generate what is not on disk yet.

    Returns:
        What went wrong, by configuration.

    Raises:
        InputError: What is on disk is of another run.
    """
    contenders = {entry.contender.name: entry.contender for entry in entries}
    return fill_groups(pieces, studio.group_size, lambda name: studio.opened(contenders[name]))
