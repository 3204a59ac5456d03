"""The search for a solver and what to reuse in its steps, both fitted to a teacher's pictures.

A step that is forecast costs little, so that in the same time a few steps fewer can compute
and many more can be made: a finer grid, whose solver and forecasts are fitted together. Which
pattern is best shows only after a fit, and a fit takes many runs. So patterns are fitted for
one round each, the best of them is varied, and the best of all is fitted to the end. Patterns
are compared on pictures of seeds that they were not fitted on, and of each fit the round is
taken whose pictures these are best.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.calibration.fingerprint import Fingerprint

from .forecast_space import ForecastSpace
from .patterns import Pattern, list_patterns
from .replay import Replay
from .solver_space import SolverSpace
from .student import PARTS, Student
from .trials import psnr, to_decibels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.solver.noise_levels import NoiseLevels

    from .patterns import Prices
    from .trials import PipelineJob


@dataclass(frozen=True)
class Judged:
    """Pictures to compare: a job, and what the teacher makes of it.

    Attributes:
        job: What is generated.
        right: The teacher's pictures, float32 ``[pictures, ...]``.
    """

    job: PipelineJob
    right: torch.Tensor

    def psnr(self, student: Student, vector: Floats) -> float:
        """PSNR of a vector's pictures in decibels; minus infinity where they are none."""
        found = psnr(self.right, student.pictures(vector, self.job))
        return found if np.isfinite(found) else -np.inf


@dataclass(frozen=True)
class Trial:
    """What is known of a pattern.

    Attributes:
        pattern: The pattern.
        vector: The solver, and the weights of its forecasts, see `Student`.
        rounds: Rounds of the fit.
        fitted_db: PSNR to the teacher of the pictures it was fitted on, in decibels.
        psnr_db: Of pictures of other seeds.
    """

    pattern: Pattern
    vector: tuple[float, ...]
    rounds: int
    fitted_db: float
    psnr_db: float


@dataclass
class SolverSearch:
    """Fits solvers with and without reuse, and keeps what it finds.

    Attributes:
        denoiser: A denoiser whose graphs keep enough for every order.
        levels: What the model was trained for.
        prices: What steps cost.
        fitted_on: The pictures that are fitted on.
        compared_on: Those that choose between fits.
        orders: Orders of forecasts.
        method: How to forecast.
        sites: As for ``transform``.
        report: Called with each trial.
        folder: Where trials are kept, so that a search that was stopped can go on; or None.
        trials: What was tried, by pattern.
    """

    denoiser: Denoiser
    levels: NoiseLevels
    prices: Prices
    fitted_on: Judged
    compared_on: Judged
    orders: Sequence[int]
    method: str
    sites: str | tuple[str, ...]
    report: Callable[[Trial], None]
    folder: Path | None = None
    trials: dict[Pattern, Trial] = field(default_factory=dict)

    def search(
        self, ms: float, num_trials: int, rounds: int, cache_bytes: int | None
    ) -> tuple[Trial, Trial]:
        """Find the best solver and pattern within a time, and the best without reuse.

        Args:
            ms: Milliseconds of a trajectory in the denoiser.
            num_trials: How many patterns are tried.
            rounds: Most rounds of a fit.
            cache_bytes: Most slot bytes; None for any number.
        """
        plain, *others = list_patterns(ms, self.prices, self.orders)
        self.fit(plain, rounds)
        within = [
            pattern
            for pattern in others
            if cache_bytes is None or pattern.cache_bytes(self.prices) <= cache_bytes
        ]
        for pattern in within[: num_trials // 2]:
            self.fit(pattern, 1)
        while len(self.trials) < num_trials:
            best = next((t for t in self.within(ms) if t.pattern.num_read), None)
            near = () if best is None else chain(best.pattern.moves(), within)
            new = next((each for each in near if each not in self.trials), None)
            if new is None:
                break
            self.fit(new, 1, best)
        self.fit(self.within(ms)[0].pattern, rounds)
        return self.within(ms)[0], self.trials[plain]

    def within(self, ms: float) -> list[Trial]:
        """The trials within a time, the best first."""
        found = [
            t for t in self.trials.values() if t.pattern.ms(self.prices) <= ms * (1 + 1e-9)
        ]
        return sorted(found, key=lambda trial: -trial.psnr_db)

    def fit(self, pattern: Pattern, rounds: int, near: Trial | None = None) -> Trial:
        """Fit a pattern for so many rounds, from where it was left or from one near it."""
        known = self.trials.get(pattern) or self._read(pattern)
        if known is None or known.rounds < rounds:
            known = self._fit(pattern, rounds, known, near)
            self._write(known)
        self.trials[pattern] = known
        self.report(known)
        return known

    def _fit(
        self, pattern: Pattern, rounds: int, known: Trial | None, near: Trial | None
    ) -> Trial:
        student = self.student(pattern)
        fitted_on, done = self.fitted_on, 0
        if known is not None:
            start, start_db, done = np.array(known.vector), known.fitted_db, known.rounds
        else:
            start, start_db = student.begin(fitted_on.job, fitted_on.right)
            if near is not None and len(near.pattern.letters) == len(pattern.letters):
                start[: student.space.size] = near.vector[: student.space.size]
                start_db = fitted_on.psnr(student, start)
        after = [(start, start_db)]
        student.fit(
            fitted_on.job,
            fitted_on.right,
            start,
            rounds=rounds - done,
            report=lambda _, square, vector: after.append((vector, to_decibels(square))),
        )
        judged = [self.compared_on.psnr(student, vector) for vector, _ in after]
        best = int(np.argmax(judged))
        vector, fitted_db = after[best]
        return Trial(pattern, tuple(vector.tolist()), rounds, fitted_db, judged[best])

    def student(self, pattern: Pattern) -> Student:
        """What is fitted of a pattern."""
        space = SolverSpace(self.levels, len(pattern.letters))
        schedule = pattern.schedule(self.method, self.sites)
        denoiser = self.denoiser.with_schedule(schedule)
        if not pattern.order:
            replay = None if pattern.num_read else Replay()
            return Student(space, denoiser, schedule, replay=replay)
        of_model = self.denoiser.table
        table = schedule.resolve(of_model.sites, around=of_model.around)
        model = Fingerprint.of(self.fitted_on.job.pipeline.transformer)
        return Student(space, denoiser, schedule, ForecastSpace(table, self.sites, model))

    def ablate(
        self, best: Trial, plain: Trial, judged: Judged, rounds: int
    ) -> dict[str, float]:
        """What each part is worth: decibels of pictures on which nothing was fitted.

        The parts of the solver are fitted alone in the steps without reuse; the table is taken
        without a fit, and with its forecasts' weights fitted alone.
        """
        name = f"ablation-{best.pattern.letters}-{best.pattern.order}.json"
        path = None if self.folder is None else self.folder / name
        of = [plain.pattern.letters, rounds, repr(judged.job.inputs)]
        known = json.loads(path.read_text()) if path is not None and path.exists() else {}
        if known.get("of") == of:
            return dict(known["found"])
        solver = self.student(plain.pattern)
        start, _ = solver.begin(self.fitted_on.job, self.fitted_on.right)
        found = {"neither": judged.psnr(solver, start)}
        for part in PARTS[:3]:
            found[f"{part} alone"] = self._alone(solver, start, judged, part, rounds)
        found["solver without reuse"] = judged.psnr(solver, np.array(plain.vector))
        if best.pattern.num_read:
            student = self.student(best.pattern)
            start, _ = student.begin(self.fitted_on.job, self.fitted_on.right)
            found["table alone"] = judged.psnr(student, start)
            if best.pattern.order:
                alone = self._alone(student, start, judged, PARTS[3], rounds)
                found["table, with forecasts' weights"] = alone
            found["all"] = judged.psnr(student, np.array(best.vector))
        if path is not None:
            path.write_text(json.dumps({"of": of, "found": found}) + "\n")
        return found

    def _alone(
        self, student: Student, start: Floats, judged: Judged, part: str, rounds: int
    ) -> float:
        fitted = self.fitted_on
        found = student.fit(fitted.job, fitted.right, start, rounds=rounds, parts=(part,))
        return judged.psnr(student, found.parameters)

    def _path(self, pattern: Pattern) -> Path | None:
        name = f"{pattern.letters}-{pattern.order}.json"
        return None if self.folder is None else self.folder / "patterns" / name

    def _read(self, pattern: Pattern) -> Trial | None:
        path = self._path(pattern)
        if path is None or not path.exists():
            return None
        row = json.loads(path.read_text())
        return Trial(**{**row, "pattern": pattern, "vector": tuple(row["vector"])})

    def _write(self, trial: Trial) -> None:
        path = self._path(trial.pattern)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(trial)) + "\n")
