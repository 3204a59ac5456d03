"""The result of a calibration: how attention looks and changes, and what reuse does to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dqar_fx.errors import ScheduleError, check_known
from dqar_fx.passes import FORMATS

from .fingerprint import Fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cells:
    """Reuses that were tried, one site at a time, and what each did to the denoiser's output.

    An error is the norm of a difference, relative to the norm of what is right.

    Attributes:
        step: int64 ``[cells]``: the step that reused.
        site: int64 ``[cells]``: the column of the site.
        age: int64 ``[cells]``: steps since the output was kept.
        error: float64 ``[cells]``: error of the denoiser's output with a kept output.
        kv_error: float64 ``[cells]``: error of the denoiser's output with kept keys and
            values; NaN where that was not tried.
        kv_change: float64 ``[cells]``: error of the site's output with kept keys and values;
            NaN where that was not tried.
    """

    step: Integers
    site: Integers
    age: Integers
    error: Floats
    kv_error: Floats
    kv_change: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, eq=False)
class CalibratedSites:
    """The sites that a calibration was of; each has a column.

    Attributes:
        sites: Module path per site.
    """

    sites: tuple[str, ...]

    def columns(self, sites: tuple[str, ...]) -> Integers:
        """The columns of sites: int64 ``[sites]``.

        Raises:
            ScheduleError: A site was not calibrated.
        """
        places = {path: column for column, path in enumerate(self.sites)}
        missing = [path for path in sites if path not in places]
        if missing:
            raise ScheduleError(
                f"{len(missing)} sites were not calibrated, such as {missing[0]}; calibrated "
                f"are {len(self.sites)}, {self.sites[0]} to {self.sites[-1]}. Calibrate with "
                "the same sites=..."
            )
        return np.array([places[path] for path in sites], np.int64)


@dataclass(frozen=True, eq=False)
class Calibration(CalibratedSites):
    """What one calibration run measured of one model.

    Attributes:
        sites: Module path per site.
        snr: float64 ``[steps]``: signal-to-noise ratio of the latent.
        entropy: float64 ``[steps, sites]``: attention entropy in [0, 1], the mean over all
            inputs and streams.
        change: float64 ``[steps, sites, ages]``: norm of the difference of a site's output
            from that of 1, 2, ... steps before, relative to its norm; NaN where there is no
            such step.
        cells: Reuses that were tried.
        fingerprint: Identifies the model.
        samples: Pictures that were generated.
    """

    snr: Floats
    entropy: Floats
    change: Floats
    cells: Cells
    fingerprint: Fingerprint
    samples: int

    @property
    def num_steps(self) -> int:
        """Number of steps of the trajectory."""
        return len(self.entropy)

    @property
    def max_age(self) -> int:
        """Largest age, in steps, that was measured."""
        return int(self.change.shape[2])

    def damping(self, rounding: float | str) -> float:
        """Work out how much to damp forecasts: ``Schedule.forecast(damping=...)``.

        Args:
            rounding: Root mean square of the noise in what is kept, relative to it; or the
                format that it is kept in, whose rounding is the noise.

        Returns:
            The noise by the mean change of a site from one step to the next.

        Raises:
            OptionError: The format is unknown.
            ScheduleError: The calibration is of a single step.
        """
        if isinstance(rounding, str):
            rounding = FORMATS[check_known("rounding=", rounding, FORMATS)].rounding
        changes = self.change[:, :, 0]
        if not np.isfinite(changes).any():
            raise ScheduleError(
                f"a calibration of {self.num_steps} steps has no change from one step to the "
                "next: calibrate with two steps or more"
            )
        return rounding / float(np.nanmean(changes))

    def save(self, folder: str | Path) -> None:
        """Write ``calibration.safetensors`` and ``calibration.json`` to a folder."""
        arrays = {name: getattr(self, name) for name in ("snr", "entropy", "change")}
        arrays |= {f"cells.{f.name}": getattr(self.cells, f.name) for f in fields(Cells)}
        facts = {"sites": self.sites, "samples": self.samples}
        write_measurement(folder, "calibration", arrays, facts, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing or damaged, or hold something else.
        """
        arrays, facts, fingerprint = read_measurement(folder, "calibration")
        try:
            loaded = cls(
                sites=tuple(facts["sites"]),
                snr=arrays["snr"],
                entropy=arrays["entropy"],
                change=arrays["change"],
                cells=Cells(**{f.name: arrays[f"cells.{f.name}"] for f in fields(Cells)}),
                fingerprint=fingerprint,
                samples=facts["samples"],
            )
        except (KeyError, TypeError) as error:
            raise ScheduleError(f"{folder}: the calibration lacks {error}") from None
        if loaded.entropy.shape != (len(loaded.snr), len(loaded.sites)):
            raise ScheduleError(
                f"{folder}: the calibration is damaged: {len(loaded.sites)} sites and "
                f"{len(loaded.snr)} steps, but entropies of shape {list(loaded.entropy.shape)}"
            )
        return loaded


def write_measurement(
    folder: str | Path,
    name: str,
    arrays: dict[str, Any],
    facts: dict[str, Any],
    fingerprint: Fingerprint,
) -> None:
    """Write arrays and what JSON can hold to ``name.safetensors`` and ``name.json``."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: torch.from_numpy(np.array(value, order="C")) for key, value in arrays.items()
    }
    tensors["fingerprint"] = fingerprint.values
    save_file(tensors, path / f"{name}.safetensors")
    facts |= {
        "model": fingerprint.model,
        "structure": fingerprint.structure,
        "precision": fingerprint.precision,
        "kind": name,
    }
    (path / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def read_measurement(
    folder: str | Path, name: str
) -> tuple[dict[str, Any], dict[str, Any], Fingerprint]:
    """Read the arrays, facts and fingerprint that `write_measurement` wrote.

    Raises:
        ScheduleError: The files are missing or damaged, or hold something else.
    """
    path = Path(folder)
    try:
        facts = json.loads((path / f"{name}.json").read_text())
        tensors = load_file(path / f"{name}.safetensors")
        values = tensors.pop("fingerprint")
        fingerprint = Fingerprint(
            facts["model"], facts["structure"], values, facts["precision"]
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ScheduleError(
            f"no {name} can be read from {folder}: {type(error).__name__}: {error}. Expected "
            f"{name}.json and {name}.safetensors, as save(folder) writes them"
        ) from error
    return {key: tensor.numpy() for key, tensor in tensors.items()}, facts, fingerprint
