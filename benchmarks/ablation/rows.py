"""Rows of the ablation: what is known and was measured of one configuration."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ablation.configurations import Entry
from benchmarks.harness.machine import Machine
from benchmarks.quality.panel import Quality


@dataclass(frozen=True)
class Row:
    """One configuration. None stands for what was not measured or does not apply.

    Attributes:
        name: Of the configuration.
        steps: Denoising steps.
        keep: What sites keep; None for the untransformed model.
        cache: How it is kept.
        schedule: The branch table, written out.
        reuse_ratio: Share of steps and sites that reuse.
        cache_bytes: Slots of the stream of the batch that is timed.
        parameter_bytes: Of the denoiser's parameters.
        macs: Multiply-accumulates of a trajectory of that batch.
        ceiling: Those of the baseline by these.
        sample_s: Time of the denoiser's calls per picture.
        repeats: Timed trajectories.
        speed_median: Time of the baseline by this one's, each of the same repeat.
        speed_min: The lowest of these.
        speed_max: The highest of these.
        quality: Of the pictures.
        frechet_differences: Per seed group, the Frechet distance less the baseline's.
        error: What went wrong.
        run: Options and settings that all rows share.
        machine: Where it ran.
    """

    name: str
    steps: int
    keep: str | None = None
    cache: str | None = None
    schedule: str | None = None
    reuse_ratio: float | None = None
    cache_bytes: int | None = None
    parameter_bytes: int | None = None
    macs: int | None = None
    ceiling: float | None = None
    sample_s: float | None = None
    repeats: int = 0
    speed_median: float | None = None
    speed_min: float | None = None
    speed_max: float | None = None
    quality: Quality = field(default_factory=Quality)
    frechet_differences: tuple[float, ...] = ()
    error: str | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    machine: Machine | None = None

    def to_json(self) -> str:
        """One flat JSON object; an infinite PSNR is the text ``inf``."""
        values = asdict(self)
        for nested in ("quality", "run", "machine"):
            shared = values.pop(nested) or {}
            # What is there already is the row's own: a rival has its own number of steps.
            values |= {name: v for name, v in shared.items() if name not in values}
        if values["psnr_db"] == math.inf:
            values["psnr_db"] = "inf"
        return json.dumps(values, allow_nan=False)


def make_rows(
    entries: Sequence[Entry],
    times: Mapping[str, Mapping[str, Any]],
    qualities: Mapping[str, Quality],
    errors: Mapping[str, str],
    **shared: Any,
) -> list[Row]:
    """Rows of all configurations; the first entry is the baseline.

    Args:
        entries: Who.
        times: Rows of the main job, by name.
        qualities: Of the pictures, by name.
        errors: What went wrong with the pictures, by name.
        **shared: What all rows share.
    """
    base = entries[0]
    base_frechet = qualities.get(base.contender.name, Quality()).frechet
    rows = []
    for entry in entries:
        name, macs = entry.contender.name, entry.facts.macs
        timed, quality = times.get(name, {}), qualities.get(name, Quality())
        pairs = zip(quality.frechet, base_frechet, strict=False)
        is_transformed = entry.contender.schedule is not None
        rows.append(
            Row(
                name=name,
                keep=entry.contender.keep if is_transformed else None,
                cache=entry.contender.cache if is_transformed else None,
                ceiling=base.facts.macs / macs if base.facts.macs and macs else None,
                quality=quality,
                frechet_differences=tuple(own - other for own, other in pairs),
                error=timed.get("error") or errors.get(name),
                **asdict(entry.facts),
                **describe_times(timed),
                **shared,
            )
        )
    return rows


def describe_times(timed: Mapping[str, Any]) -> dict[str, Any]:
    """What a row takes from a row of the main job."""
    if timed.get("step_ms_median") is None:
        return {}
    names = ("repeats", "speed_median", "speed_min", "speed_max")
    trajectory_s = timed["step_ms_median"] * timed["steps"] / 1e3
    return {
        "sample_s": trajectory_s / len(timed["seeds"]),
        **{name: timed[name] for name in names},
    }


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seed groups; None for fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write one line of JSON per row."""
    path.write_text("".join(f"{row.to_json()}\n" for row in rows))
