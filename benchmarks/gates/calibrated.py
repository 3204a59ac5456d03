"""Options of what a calibration decides, and the calibration: read where there is one."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

import dqar_fx
from benchmarks.ablation.protocol import refuse_unknown
from benchmarks.harness.errors import InputError
from benchmarks.harness.options import (
    Count,
    at_least,
    convert_with,
    default_is,
    folder_to_keep,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions, Task, name_classes
from dqar_fx import Calibration, DqarError


@dataclass(frozen=True)
class CalibratedOptions(PipelineOptions):
    """Options of a command that calibrates; it has its own steps, seed and folder, too."""

    labels: Annotated[
        tuple[int, ...] | None,
        several(at_least(0), "N"),
        default_is("the first ones of the pipeline"),
    ] = None
    """Classes of the pictures, of the calibration as well."""
    samples: Count = 8
    """Number of classes, without these."""
    calibration: Annotated[
        Path | None, convert_with(folder_to_keep, "FOLDER"), default_is("measure anew")
    ] = None
    """Read a calibration there, or write it there."""
    steps: Count = 50
    """Denoising steps."""
    seed: Annotated[int, at_least(0)] = 0
    """Of the calibration."""
    out: Path = Path("results")
    """Folder to write to."""

    def make_task(self, pipe: Any, first_seed: int, guidance: float) -> Task:
        """One picture for each class.

        Raises:
            InputError: The pipeline does not have one.
        """
        names = name_classes(pipe)
        labels = self.labels or tuple(sorted(names)[: self.samples])
        refuse_unknown("--labels", labels, names)
        seeds = tuple(range(first_seed, first_seed + len(labels)))
        return Task(seeds, labels, tuple(names[label] for label in labels), guidance)


def obtain_calibration(
    pipe: Any, task: Task, options: CalibratedOptions, *, compare_kv: bool
) -> Calibration:
    """Read a calibration, or measure one and write it.

    Args:
        pipe: The pipeline.
        task: Its classes and guidance are those of the pictures that are generated to measure.
        options: Where the calibration is or is to be, its steps, and its seed.
        compare_kv: Whether kept keys and values must be in it.

    Raises:
        InputError: What is in the folder is damaged, of other steps, or lacks something.
    """
    given = options.calibration
    if given is not None and (given / "calibration.json").exists():
        print(f"the calibration is that of {given}", file=sys.stderr)
        return read_calibration(pipe, given, steps=options.steps, compare_kv=compare_kv)
    folder = given or options.out / "calibration"
    calibration = dqar_fx.calibrate(
        pipe,
        task.labels,
        num_steps=options.steps,
        compare_kv=compare_kv,
        seed=options.seed,
        guidance_scale=task.guidance,
    )
    calibration.save(folder)
    print(f"wrote {folder}; --calibration {folder} takes it from there", file=sys.stderr)
    return calibration


def read_calibration(pipe: Any, folder: Path, *, steps: int, compare_kv: bool) -> Calibration:
    """Read a calibration and see that it is what is needed.

    Raises:
        InputError: It is not.
    """
    try:
        calibration = Calibration.load(folder)
        calibration.fingerprint.refuse_other(pipe.transformer, f"the calibration in {folder}")
    except DqarError as error:
        raise InputError(f"--calibration {folder}: {error}") from None
    if calibration.num_steps != steps:
        raise InputError(
            f"--calibration {folder} has {calibration.num_steps} steps, but --steps is "
            f"{steps}: give the same number, or another folder to measure anew"
        )
    if compare_kv and np.isnan(calibration.cells.kv_error).all():
        raise InputError(
            f"--calibration {folder} was made without kept keys and values: give another "
            "folder to measure anew"
        )
    return calibration
