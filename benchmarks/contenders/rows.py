"""Rows: what was measured of one contender, as one line of JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.kinds import TEACHER
from benchmarks.contenders.records import Record
from benchmarks.harness.rows import SHARED
from benchmarks.harness.timing import describe_speed, take_ratios
from benchmarks.quality.judge import Judge, measure_psnr_db
from benchmarks.quality.panel import Quality

NO_SAVING = 0.001
"""Share of the multiply-accumulates below which a saving is none."""
KEPT_FACTS = ("warmup_s", "graphs", "breaks", "recompiles", "evaluations", "trials")
SAME_DB = 100.0
"""PSNR from which pictures are the same but for how a compiler rounds."""


@dataclass(frozen=True)
class Row:
    """One contender. None stands for what was not measured or does not apply.

    Attributes:
        name: Of the contender; so are setting, mode, tool and steps.
        family: Title of the contender's family.
        kind: Of that family.
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
        evaluations: Calls of the denoiser in a trajectory, guidance's halves counted once.
        trials: Schedules that were tried to find this one; None where none was searched.
        pictures: That were compared with the full run's of the same seeds.
        converged_db: PSNR of all of these together to the teacher's; None without a teacher.
        psnr_db: The same to the full run's.
        ssim: Mean over these.
        lpips: The same, by features.
        note: What is odd about it.
        error: What went wrong.
        judged: Quality of the pictures that were judged against real ones.
        frechet_differences: Per seed group, the Frechet distance less the full run's.
        run: Options and settings that all rows share.
        machine: Where it ran.
    """

    name: str
    setting: str
    mode: str
    tool: str | None
    family: str
    kind: str
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
    evaluations: int | None = None
    trials: int | None = None
    pictures: int = 0
    converged_db: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    note: str | None = None
    error: str | None = None
    judged: Quality | None = None
    frechet_differences: tuple[float, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict, metadata=SHARED)
    machine: Mapping[str, Any] = field(default_factory=dict, metadata=SHARED)

    @property
    def is_placed(self) -> bool:
        """Whether it has a place in a plane of speed and quality."""
        known = self.error is None and self.speed_median is not None
        return known and self.quality_db is not None

    @property
    def quality_db(self) -> float | None:
        """Distance to converged pictures, or where there is no teacher, to the full run's."""
        return self.psnr_db if self.converged_db is None else self.converged_db


def make_rows(
    contenders: Sequence[Contender],
    records: Mapping[str, Record],
    judge: Judge,
    run: Mapping[str, Any],
) -> list[Row]:
    """Rows of all contenders, as far as they were timed.

    The first contender is the base. Pictures are compared with those of the last one of its
    family, the eager untransformed model, and with the teacher's.
    """
    base = records[contenders[0].name]
    plain = [each for each in contenders if each.family == contenders[0].family][-1]
    others = base, records[plain.name], judge
    teachers = [records[each.name] for each in contenders if each.family == TEACHER]
    return [
        Row(
            **describe_contender(each, records[each.name], *others),
            converged_db=measure_converged(records[each.name], *teachers),
            run=run,
        )
        for each in contenders
    ]


def measure_converged(record: Record, teacher: Record | None = None) -> float | None:
    """PSNR of a record's pictures to a teacher's; None where one of them has none."""
    if record.error or teacher is None:
        return None
    pairs = pair_images(record, teacher)
    return None if pairs is None else measure_psnr_db(*pairs)


def describe_contender(
    contender: Contender, record: Record, base: Record, reference: Record, judge: Judge | None
) -> dict[str, Any]:
    """The fields of the row of one contender; without a judge, pictures are not compared."""
    facts, found = record.facts, describe_times(record, contender.steps)
    pairs = None if judge is None or record.error else pair_images(record, reference)
    if judge is not None and pairs is not None:
        found |= {"pictures": len(pairs[0]), **asdict(judge.compare(*pairs))}
    macs, full = facts.get("macs"), base.facts.get("macs")
    ratio = macs / full if macs is not None and full else None
    is_same = (found.get("psnr_db") or 0) >= SAME_DB
    return {
        **{name: getattr(contender, name) for name in ("name", "setting", "mode", "tool")},
        "family": contender.family.title,
        "kind": contender.family.kind,
        "steps": contender.steps,
        "macs": macs,
        "macs_ratio": ratio,
        "saving_in_time": turn_saving(found.get("speed_median"), ratio),
        "note": describe_idle(contender, facts) if is_same else None,
        "error": record.error,
        "machine": facts.get("machine", {}),
        **{key: facts.get(key) for key in KEPT_FACTS},
        **found,
    }


def describe_times(record: Record, steps: int) -> dict[str, Any]:
    """Times, and speed repeat by repeat."""
    if not record.times:
        return {}
    base_s, own_s = zip(*record.times.values(), strict=True)
    trajectory_s = statistics.median(own_s)
    return {
        "trajectory_s": trajectory_s,
        "step_ms": 1e3 * trajectory_s / steps,
        "repeats": len(own_s),
        **describe_speed(take_ratios(base_s, own_s)),
    }


def pair_images(record: Record, reference: Record) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Pictures of all trajectories that both made, of each; None without any."""
    numbers = sorted({*record.images} & {*reference.images})
    if not numbers:
        return None
    own, other = (
        torch.cat([each.images[number] for number in numbers]) for each in (record, reference)
    )
    return own, other


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


def describe_idle(contender: Contender, facts: Mapping[str, Any]) -> str | None:
    """What is odd where something gives just what the full run gives: it does nothing."""
    if contender.family.kind in ("base", "fewer", "teacher", "solver"):
        return None
    hooked = facts.get("hooked")
    where = "" if hooked is None else f" ({hooked} modules have a hook)"
    return f"is attached without an error, but reuses nothing{where}"


def add_quality(
    rows: Sequence[Row], qualities: Mapping[str, Quality], errors: Mapping[str, str]
) -> list[Any]:
    """The rows, with what became of those that were judged; the first is the base."""
    base = qualities.get(rows[0].name, Quality()).frechet
    judged = []
    for row in rows:
        own = qualities.get(row.name, Quality()).frechet
        differences = tuple(each - full for each, full in zip(own, base, strict=False))
        judged.append(
            replace(
                row,
                judged=qualities.get(row.name),
                error=row.error or errors.get(row.name),
                frechet_differences=differences,
            )
        )
    return judged
