"""The result of a search: the tables that no other beats in both time and quality."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from dqar_fx.calibration.calibration import read_measurement, write_measurement
from dqar_fx.errors import DqarError, ScheduleError
from dqar_fx.guidance.guidance import Guidance
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.schedule.table import BranchTable
from dqar_fx.schedule.written_out import WrittenActions
from dqar_fx.solver.multistep_scheduler import MultistepScheduler

from .fit import FittedActions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dqar_fx.calibration.fingerprint import Fingerprint


@dataclass(frozen=True)
class Point:
    """One table that was tried.

    Attributes:
        ms: Milliseconds of a trajectory in the denoiser, predicted from measured costs.
        psnr_db: PSNR in decibels against the untransformed model, measured on the inputs that
            the table was found with: of two sets of seeds, or of one alone where that was not
            better than others. With a teacher it is against the teacher's pictures, of seeds
            that nothing was fitted on.
        predicted_error: Error of the pictures (root mean square) by the additive model; None
            with a teacher.
        cache_bytes: Slot bytes of one stream.
        schedule: The table, as a schedule.
        guidance: What the unconditional stream does, for ``transform``; None if it does what
            the other does.
        held_out_db: PSNR in decibels on other seeds; None if it was not measured.
        scheduler: The solver; None where the pipeline's own stands.
    """

    ms: float
    psnr_db: float
    predicted_error: float | None
    cache_bytes: int
    schedule: Schedule
    guidance: Guidance | None = None
    held_out_db: float | None = None
    scheduler: MultistepScheduler | None = None


@dataclass(frozen=True)
class Front:
    """Tables in order of time, each with better pictures than all faster ones.

    Attributes:
        points: The tables.
        sites: Module path per site.
        full_ms: Milliseconds of a trajectory that computes everything; with a teacher, of one
            with as many steps as are within the budget.
        fingerprint: Identifies the model.
    """

    points: tuple[Point, ...]
    sites: tuple[str, ...]
    full_ms: float
    fingerprint: Fingerprint

    @classmethod
    def of(
        cls,
        tried: Iterable[Point],
        sites: tuple[str, ...],
        full_ms: float,
        fingerprint: Fingerprint,
    ) -> Front:
        """Select the tables that no other beats, from those that were tried."""
        best: list[Point] = []
        for point in sorted(tried, key=lambda p: (p.ms, -p.psnr_db)):
            if not best or point.psnr_db > best[-1].psnr_db:
                best.append(point)
        return cls(tuple(best), sites, full_ms, fingerprint)

    def within(
        self,
        *,
        ms: float | None = None,
        quality: float | None = None,
        cache_bytes: int | None = None,
    ) -> Point:
        """Find the best point within a budget.

        Args:
            ms: Most milliseconds of a trajectory in the denoiser.
            quality: Least PSNR in decibels.
            cache_bytes: Most slot bytes of one stream.

        Returns:
            With ``quality``, the fastest point that has it; else with ``ms``, the point with
            the best pictures; with neither, the knee: the point that lies farthest above the
            line from the fastest to the best.

        Raises:
            ScheduleError: No point is within the budget.
        """
        fits = [
            point
            for point in self.points
            if (ms is None or point.ms <= ms)
            and (quality is None or point.psnr_db >= quality)
            and (cache_bytes is None or point.cache_bytes <= cache_bytes)
        ]
        if not fits:
            raise ScheduleError(
                f"no table was found within ms={ms}, quality={quality}, "
                f"cache_bytes={cache_bytes}. Those that were found:\n{self}"
            )
        if quality is not None:
            return fits[0]
        return fits[-1] if ms is not None else knee(fits)

    def table(self, point: Point) -> BranchTable:
        """The branch table of a point, whose `BranchTable.why` explains each cell."""
        return point.schedule.resolve(self.sites)

    def with_held_out(self, decibels: Sequence[float]) -> Front:
        """Add the PSNR in decibels that other seeds gave, one per point."""
        pairs = zip(self.points, decibels, strict=True)
        return replace(self, points=tuple(replace(p, held_out_db=db) for p, db in pairs))

    def __str__(self) -> str:
        rows = [
            {
                "ms": f"{point.ms:.1f}",
                "speed": f"{self.full_ms / point.ms:.2f}",
                "PSNR dB": f"{point.psnr_db:.1f}",
                "held-out": "-" if point.held_out_db is None else f"{point.held_out_db:.1f}",
                "computed": f"{1 - self.table(point).reuse_ratio:.3f}",
                "cache KB": f"{point.cache_bytes / 1e3:.0f}",
                "unconditional": describe_guidance(point.guidance),
            }
            for point in self.points
        ]
        return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)

    def save(self, folder: str | Path) -> None:
        """Write the front, and for each point a branch table ``table_<number>.json``.

        The front is ``front.json``, with the numbers of solvers, and ``front.safetensors``,
        which identifies the model.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for number, point in enumerate(self.points):
            name = f"table_{number:02d}.json"
            self.table(point).save(path / name)
            numbers = ("ms", "psnr_db", "held_out_db", "predicted_error", "cache_bytes")
            row = {key: getattr(point, key) for key in numbers}
            rule, sites = point.schedule.rule, point.schedule.sites
            assert isinstance(rule, WrittenActions)
            row |= {"table": name, "sites": sites, "reasons": rule.reasons}
            row |= {"guidance": write_guidance(point.guidance)}
            rows.append({**row, "scheduler": write_scheduler(point.scheduler)})
        facts = {"full_ms": self.full_ms, "sites": self.sites, "points": rows}
        write_measurement(path, "front", {}, facts, self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> Front:
        """Read what `save` wrote.

        Raises:
            ScheduleError: The files are missing or damaged, or hold something else.
        """
        path = Path(folder)
        _, facts, fingerprint = read_measurement(path, "front")
        try:
            points = tuple(read_point(path, row, fingerprint) for row in facts["points"])
            return cls(points, tuple(facts["sites"]), float(facts["full_ms"]), fingerprint)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ScheduleError(
                f"no front can be read from {folder}: {type(error).__name__}: {error}. "
                "Expected front.json and its tables, as save(folder) writes them"
            ) from error

    def plot(self, path: str | Path) -> None:
        """Draw PSNR over speed to a picture file, whose format the path's suffix names.

        Raises:
            DqarError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise DqarError(
                "drawing a front needs matplotlib: pip install 'dqar_fx[figures]'"
            ) from error
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        speeds = [self.full_ms / point.ms for point in self.points]
        axes.plot(speeds, [p.psnr_db for p in self.points], "o-", label="where it was found")
        held_out = [p.held_out_db for p in self.points]
        if all(value is not None for value in held_out):
            axes.plot(speeds, held_out, "s--", label="on held-out seeds")  # type: ignore[arg-type]  # all are known here
        axes.set_xlabel("speed against computing everything (predicted from measured costs)")
        axes.set_ylabel("PSNR in dB, against the untransformed model")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path)


def describe_guidance(guidance: Guidance | None) -> str:
    """Tell how many calls of the unconditional stream are made."""
    table = None if guidance is None else guidance.output_table()
    return "all" if table is None else f"{int((~table.is_read).sum())} of {table.num_steps}"


def read_point(folder: Path, row: dict[str, Any], fingerprint: Fingerprint) -> Point:
    """Read a point, given its row of ``front.json``."""
    plain = Schedule.from_table(BranchTable.load(folder / row["table"]))
    reasons = tuple(tuple(each) for each in row["reasons"])
    written = plain.rule
    assert isinstance(written, WrittenActions)
    # what is stored follows from what is read, also where a stream is left out
    letters = tuple(tuple(c.replace("S", "C") for c in row) for row in written.letters)
    given = {**vars(written), "letters": letters, "strict": False, "reasons": reasons}
    rule = (
        FittedActions(**given, fingerprint=fingerprint)
        if written.weights
        else replace(written, letters=letters, strict=False, reasons=reasons)
    )
    sites = row["sites"] if isinstance(row["sites"], str) else tuple(row["sites"])
    return Point(
        ms=row["ms"],
        psnr_db=row["psnr_db"],
        predicted_error=row["predicted_error"],
        cache_bytes=row["cache_bytes"],
        schedule=replace(plain, rule=rule, sites=sites),
        guidance=read_guidance(row.get("guidance")),
        held_out_db=row["held_out_db"],
        scheduler=read_scheduler(row.get("scheduler")),
    )


def write_scheduler(scheduler: MultistepScheduler | None) -> dict[str, Any] | None:
    """The numbers of a solver, as far as there is one."""
    if scheduler is None:
        return None
    return {key: value for key, value in scheduler.config.items() if key[0] != "_"}


def read_scheduler(numbers: dict[str, Any] | None) -> MultistepScheduler | None:
    """Make the solver of what `write_scheduler` gave."""
    return None if numbers is None else MultistepScheduler(**numbers)


def write_guidance(guidance: Guidance | None) -> dict[str, Any] | None:
    """Turn guidance into what JSON can hold, with the actions of its output written out."""
    table = None if guidance is None else guidance.output_table()
    if guidance is None or table is None:
        return None
    return {
        "actions": table.actions[:, 0].tolist(),
        "orders": table.orders[:, 0].tolist(),
        "method": table.method,
        "keep": guidance.keep,
        "batched": guidance.batched,
        "stream": guidance.stream,
    }


def read_guidance(row: dict[str, Any] | None) -> Guidance | None:
    """Make guidance of what `write_guidance` gave."""
    if row is None:
        return None
    actions, orders = (np.array(row[name])[:, None] for name in ("actions", "orders"))
    output = Schedule.from_actions(actions, orders=orders, method=row["method"])
    return Guidance(
        output=output, keep=row["keep"], batched=row["batched"], stream=row["stream"]
    )


def knee(points: Sequence[Point]) -> Point:
    """Find the point farthest above the line from the first to the last."""
    ms = np.array([point.ms for point in points])
    db = np.array([point.psnr_db for point in points])
    x = (ms - ms[0]) / max(np.ptp(ms), 1e-12)
    y = (db - db[0]) / max(np.ptp(db), 1e-12)
    return points[int(np.argmax(y - x))]
