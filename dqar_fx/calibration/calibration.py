"""What a calibration run measured: how attention looks and changes, and what reuse does."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dqar_fx.errors import ScheduleError

from .fingerprint import Fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cells:
    """Reuses that were tried, one site at a time: what each did to the denoiser's output.

    Errors are norms of a difference, relative to the norm of what is right.

    Attributes:
        step: int64 ``[cells]``.
        site: int64 ``[cells]``.
        age: int64 ``[cells]``: steps since the output was kept.
        error: Of the denoiser's output, with a kept output.
        kv_error: The same with kept keys and values; NaN where that was not tried.
        kv_change: Of the site's output, with kept keys and values; NaN likewise.
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
class Calibration:
    """A calibration run of one model.

    Attributes:
        sites: Module path per site.
        snr: ``[steps]``: signal-to-noise ratio of the latent.
        entropy: ``[steps, sites]``: attention entropy in [0, 1], mean over what was run.
        change: ``[steps, sites, ages]``: norm of the difference of a site's output from that
            of 1, 2, ... steps before, relative to its norm; NaN where there is no such step.
        cells: Reuses that were tried.
        fingerprint: The model.
        samples: Pictures that were generated.
    """

    sites: tuple[str, ...]
    snr: Floats
    entropy: Floats
    change: Floats
    cells: Cells
    fingerprint: Fingerprint
    samples: int

    @property
    def num_steps(self) -> int:
        """Steps of the trajectory."""
        return len(self.entropy)

    @property
    def max_age(self) -> int:
        """Largest age that was looked at."""
        return int(self.change.shape[2])

    def columns(self, sites: tuple[str, ...]) -> Integers:
        """Where sites stand in this calibration.

        Raises:
            ScheduleError: One is not there.
        """
        return columns_of(sites, self.sites)

    def save(self, folder: str | Path) -> None:
        """Write ``calibration.safetensors`` and ``calibration.json``."""
        arrays = {name: getattr(self, name) for name in ("snr", "entropy", "change")}
        arrays |= {f"cells.{f.name}": getattr(self.cells, f.name) for f in fields(Cells)}
        facts = {"sites": self.sites, "samples": self.samples}
        write(folder, "calibration", arrays, facts, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing, damaged, or something else.
        """
        arrays, facts, fingerprint = read(folder, "calibration")
        try:
            found = cls(
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
        if found.entropy.shape != (len(found.snr), len(found.sites)):
            raise ScheduleError(
                f"{folder}: the calibration is damaged: {len(found.sites)} sites and "
                f"{len(found.snr)} steps, but entropies of shape {list(found.entropy.shape)}"
            )
        return found


def columns_of(sites: tuple[str, ...], known: tuple[str, ...]) -> Integers:
    """Positions of sites among those that are known.

    Raises:
        ScheduleError: One is unknown.
    """
    places = {path: column for column, path in enumerate(known)}
    missing = [path for path in sites if path not in places]
    if missing:
        raise ScheduleError(
            f"{len(missing)} sites were not calibrated, such as {missing[0]}; calibrated are "
            f"{len(known)}, {known[0]} to {known[-1]}. Calibrate with the same sites=..."
        )
    return np.array([places[path] for path in sites], np.int64)


def write(
    folder: str | Path,
    name: str,
    arrays: dict[str, Any],
    facts: dict[str, Any],
    fingerprint: Fingerprint,
) -> None:
    """Write arrays to ``name.safetensors`` and facts to ``name.json``."""
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


def read(folder: str | Path, name: str) -> tuple[dict[str, Any], dict[str, Any], Fingerprint]:
    """Arrays, facts and fingerprint that `write` wrote.

    Raises:
        ScheduleError: The files are missing, damaged, or something else.
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
