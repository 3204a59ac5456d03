"""Rows: what was measured of one contender, as one line of JSON."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.pareto.contenders import Contender, Family
from benchmarks.pareto.records import Record
from benchmarks.quality.judge import Judge, SameSeed
from benchmarks.quality.panel import Quality

NO_SAVING = 0.001
"""Share of the multiply-accumulates below which a saving is none."""
SAME_DB = 100.0
"""PSNR from which pictures are the same but for how a compiler rounds."""


@dataclass(frozen=True)
class Row:
    """One contender. None stands for what was not measured or does not apply.

    Attributes:
        name: Of the contender.
        setting: What it does; equal for its modes.
        mode: How it runs.
        tool: Of a rival, the system's name.
        family: Where it belongs.
        steps: Denoising steps.
        trajectory_s: Time of a trajectory, median over repeats.
        step_ms: That by its steps.
        repeats: Timed trajectories.
        speed_median: Time of the base by this one's, each of the same repeat.
        speed_min: The lowest of these.
        speed_max: The highest of these.
        macs: Multiply-accumulates of a trajectory.
        macs_ratio: These by those of the full run, 1 for no saving.
        saving_in_time: Saving turned into time, see `turn_saving`.
        warmup_s: Time of the first trajectory, in which things are compiled.
        graphs: Compiled in it.
        breaks: Graph breaks in it.
        recompiles: Graphs compiled later.
        pictures: That were compared with the full run's of the same seeds.
        psnr_db: Of all of these together.
        ssim: Mean over these.
        lpips: The same, by features.
        note: What is odd about it.
        error: What went wrong.
        quality: Of the pictures that were judged against real ones.
        frechet_differences: Per seed group, the Frechet distance less the full run's.
        run: Options and settings that all rows share.
        machine: Where it ran.
    """

    name: str
    setting: str
    mode: str
    tool: str | None
    family: Family
    steps: int
    trajectory_s: float | None = None
    step_ms: float | None = None
    repeats: int = 0
    speed_median: float | None = None
    speed_min: float | None = None
    speed_max: float | None = None
    macs: int | None = None
    macs_ratio: float | None = None
    saving_in_time: float | None = None
    warmup_s: float | None = None
    graphs: int | None = None
    breaks: int | None = None
    recompiles: int | None = None
    pictures: int = 0
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    note: str | None = None
    error: str | None = None
    quality: Quality | None = None
    frechet_differences: tuple[float, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_placed(self) -> bool:
        """Whether it has a place in a plane of speed and quality."""
        known = self.error is None and self.speed_median is not None
        return known and self.psnr_db is not None

    def to_json(self) -> str:
        """One JSON object; an infinite PSNR is the text ``inf``."""
        values = asdict(self)
        values["family"], values["kind"] = self.family.title, self.family.kind
        values["judged"] = values.pop("quality")
        for nested in ("run", "machine"):
            shared = values.pop(nested)
            values |= {name: v for name, v in shared.items() if name not in values}
        return json.dumps(replace_infinite(values), allow_nan=False)


def replace_infinite(value: Any) -> Any:
    """The same with the text ``inf`` for infinity, at any depth."""
    if isinstance(value, Mapping):
        return {name: replace_infinite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_infinite(inner) for inner in value]
    return "inf" if value == math.inf else value


def make_rows(
    contenders: Sequence[Contender],
    records: Mapping[str, Record],
    judge: Judge,
    run: Mapping[str, Any],
) -> list[Row]:
    """Rows of all contenders, as far as they were timed.

    The first contender is the base. Pictures are compared with those of the last one of its
    family: the eager untransformed model.
    """
    base = records[contenders[0].name]
    plain = [each for each in contenders if each.family == contenders[0].family][-1]
    reference = records[plain.name]
    return [
        make_row(each, records[each.name], base, reference, judge, run) for each in contenders
    ]


def make_row(
    contender: Contender,
    record: Record,
    base: Record,
    reference: Record,
    judge: Judge,
    run: Mapping[str, Any],
) -> Row:
    """The row of one contender."""
    facts = record.facts
    row: dict[str, Any] = {
        **describe_times(record, contender.steps),
        **describe_pictures(record, reference, judge),
    }
    macs, full = facts.get("macs"), base.facts.get("macs")
    ratio = macs / full if macs is not None and full else None
    return Row(
        name=contender.name,
        setting=contender.setting,
        mode=contender.mode,
        tool=contender.tool,
        family=contender.family,
        steps=contender.steps,
        macs=macs,
        macs_ratio=ratio,
        saving_in_time=turn_saving(row.get("speed_median"), ratio),
        note=find_oddity(contender, facts, row),
        error=record.error,
        run=run,
        machine=facts.get("machine", {}),
        **{key: facts.get(key) for key in ("warmup_s", "graphs", "breaks", "recompiles")},
        **row,
    )


def describe_times(record: Record, steps: int) -> dict[str, Any]:
    """Times, and speed repeat by repeat."""
    if not record.times:
        return {}
    ratios = [base_s / own_s for base_s, own_s in record.times.values()]
    trajectory_s = statistics.median(own_s for _, own_s in record.times.values())
    return {
        "trajectory_s": trajectory_s,
        "step_ms": 1e3 * trajectory_s / steps,
        "repeats": len(ratios),
        "speed_median": statistics.median(ratios),
        "speed_min": min(ratios),
        "speed_max": max(ratios),
    }


def describe_pictures(record: Record, reference: Record, judge: Judge) -> dict[str, Any]:
    """Distances from the full run's pictures, over all trajectories that both made."""
    numbers = sorted({*record.images} & {*reference.images})
    if not numbers or record.error is not None:
        return {}
    images, others = (
        torch.cat([each.images[number] for number in numbers]) for each in (record, reference)
    )
    compared: SameSeed = judge.compare(images, others)
    return {"pictures": len(images), **asdict(compared)}


def turn_saving(speed: float | None, macs_ratio: float | None) -> float | None:
    """Which share of the multiply-accumulates that are saved is saved as time.

    ``(1 - 1 / speed) / (1 - macs_ratio)``: 1 if a trajectory with 40 % of the
    multiply-accumulates takes 40 % of the time, 0.5 if it takes 70 %. Above 1 where what is
    saved took more than its share; below 0 where it got slower. None without a saving.

    Args:
        speed: Time of the full run, compiled, by that of the contender.
        macs_ratio: Multiply-accumulates of the contender by those of the full run.
    """
    if speed is None or macs_ratio is None or macs_ratio > 1 - NO_SAVING:
        return None
    return (1 - 1 / speed) / (1 - macs_ratio)


def find_oddity(
    contender: Contender, facts: Mapping[str, Any], row: Mapping[str, Any]
) -> str | None:
    """That a cache was attached and does nothing: its pictures are those of the full run."""
    is_plain = contender.family.kind in ("base", "fewer")
    if is_plain or row.get("psnr_db") is None or row["psnr_db"] < SAME_DB:
        return None
    hooked = facts.get("hooked")
    where = "" if hooked is None else f" ({hooked} modules have a hook)"
    return f"is attached without an error, but reuses nothing{where}"


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write one line of JSON per row."""
    path.write_text("".join(f"{row.to_json()}\n" for row in rows))
