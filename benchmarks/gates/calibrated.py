"""The calibration: read from a folder where there is one, else measured and written there."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dqar_fx
from benchmarks.harness.errors import InputError
from dqar_fx import Calibration, DqarError


def obtain_calibration(
    pipe: Any,
    labels: Sequence[int],
    *,
    given: Path | None,
    out: Path,
    steps: int,
    guidance: float,
    seed: int,
    compare_kv: bool,
) -> Calibration:
    """Read a calibration, or measure one and write it.

    Args:
        pipe: The pipeline.
        labels: Classes of the pictures that are generated to measure.
        given: Folder of the calibration, or where it is to be; None to measure always.
        out: Folder in which ``calibration`` is written where none is given.
        steps: Denoising steps.
        guidance: Guidance scale.
        seed: Of the noise and of the choice of cells.
        compare_kv: Whether kept keys and values must be in it.

    Raises:
        InputError: What is in the folder is damaged, of other steps, or lacks something.
    """
    if given is not None and (given / "calibration.json").exists():
        print(f"the calibration is that of {given}", file=sys.stderr)
        return read_calibration(pipe, given, steps=steps, compare_kv=compare_kv)
    folder = given or out / "calibration"
    calibration = dqar_fx.calibrate(
        pipe,
        labels,
        num_steps=steps,
        compare_kv=compare_kv,
        seed=seed,
        guidance_scale=guidance,
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
