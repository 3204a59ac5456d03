"""Rows of the ablation: what is known and was measured of one configuration."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.ablation.configurations import Entry
from benchmarks.harness.machine import Machine
from benchmarks.harness.rows import SHARED
from benchmarks.quality.panel import Quality


@dataclass(frozen=True)
class Setting:
    """Options and settings that all rows of a run share.

    Attributes:
        weights: Fingerprint of the parameters.
        classes: Of the pictures, in turn.
        samples: Pictures in the batch that is timed.
        first_seeds: Of each seed group.
        frechet_name: Of the distance from real pictures; None where there is none.
        lpips_name: Of the perceptual distance; None where there is none.
        kv_share: What reusing keys and values saves by what reusing outputs saves, on paper.
    """

    model: str
    weights: str
    device: str
    dtype: str
    lowering: str
    steps: int
    scheduler: str
    scheduler_class: str
    guidance: float
    classes: tuple[int, ...]
    samples: int
    seed_groups: int
    first_seeds: tuple[int, ...]
    frechet_name: str | None
    lpips_name: str | None
    kv_share: float

    @property
    def frechet(self) -> str:
        """What tables call the distance from real pictures."""
        return self.frechet_name or "FD"

    @property
    def lpips(self) -> str:
        """What tables call the perceptual distance."""
        return self.lpips_name or "LPIPS"


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
        run: What all rows share.
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
    quality: Quality = field(default_factory=Quality, metadata=SHARED)
    frechet_differences: tuple[float, ...] = ()
    error: str | None = None
    # A rival has its own number of steps: what a row has itself is not taken from here.
    run: Setting = field(kw_only=True, metadata=SHARED)
    machine: Machine = field(kw_only=True, metadata=SHARED)


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
