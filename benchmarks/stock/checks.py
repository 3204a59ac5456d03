"""What each stock pipeline must show when it is transformed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

import dqar_fx
from benchmarks.harness.verdicts import Verdict
from benchmarks.stock.oracle import ActionsByPath, following
from benchmarks.stock.stock import Stock
from benchmarks.stock.watch import Visit, watched
from dqar_fx import Action, Schedule
from dqar_fx.schedule.rules import AnyModelRule, Moment

SEED, OTHER_SEED = 0, 1
COMPUTED = (Action.COMPUTE, Action.STORE)
REUSED = 0.6
"""Share of the cells of an aperiodic table that may reuse."""


@dataclass(frozen=True)
class RandomRule(AnyModelRule):
    """Each site may reuse at steps of its own, drawn at random: no period, no two alike.

    Attributes:
        seed: Of the draw.
    """

    seed: int

    def may_reuse(self, moment: Moment) -> NDArray[np.bool_]:
        """Draws for each site by its path: it does the same in every table that it is in."""
        draws = [
            np.random.default_rng((self.seed, moment.step, zlib.crc32(site.encode()))).random()
            for site in moment.sites
        ]
        return np.array(draws) < REUSED

    def why(self, moment: Moment, site: int) -> str:
        """Names the draw."""
        return f"drawn at random, seed {self.seed}"


@dataclass(frozen=True)
class Plain:
    """What the untouched pipeline gives for a seed, and its calls."""

    sample: torch.Tensor
    visits: list[Visit]
    num_rows: int


@dataclass(frozen=True)
class Expected:
    """What the oracle gives, by which tables, and per call the sites without a value."""

    sample: torch.Tensor
    tables: dict[str, ActionsByPath]
    cold: dict[str, list[set[str]]]


@dataclass(frozen=True)
class Transformed:
    """What a transformed pipeline gives, its denoisers, and the calls that each wrote down."""

    pipe: DiffusionPipeline
    sample: torch.Tensor
    denoisers: dict[str, Any]
    calls: dict[str, list[Any]]


class Trial:
    """What is found out of one stock pipeline; each part when it is first asked for."""

    def __init__(self, stock: Stock) -> None:
        self.stock = stock

    @cached_property
    def plain(self) -> Plain:
        """One request, untouched."""
        pipe = self.stock.make()
        with watched(pipe, self.stock.denoisers) as watch:
            sample = self.stock.call(pipe, SEED)
        return Plain(sample, watch.visits(), watch.num_rows)

    @cached_property
    def schedule(self) -> Schedule:
        """An aperiodic table of the pipeline's own, different at each site."""
        seed = zlib.crc32(self.stock.name.encode())
        return Schedule(self.plain.num_rows, RandomRule(seed))

    @cached_property
    def computed(self) -> torch.Tensor:
        """What the transformed pipeline gives with a table that computes everything."""
        pipe, all_computed = self.enabled.pipe, Schedule.compute_all(self.plain.num_rows)
        try:
            for name, denoiser in self.enabled.denoisers.items():
                setattr(pipe, name, denoiser.with_schedule(all_computed))
            return self.stock.call(pipe, SEED)
        finally:
            for name, denoiser in self.enabled.denoisers.items():
                setattr(pipe, name, denoiser)

    def run(self, pipe: DiffusionPipeline, seed: int = SEED) -> Transformed:
        """One request to a transformed pipeline; the calls are those of all its requests."""
        sample = self.stock.call(pipe, seed)
        denoisers = {name: getattr(pipe, name) for name in self.stock.denoisers}
        calls = {
            name: [call for run in denoiser.runs for call in run.calls]
            for name, denoiser in denoisers.items()
        }
        return Transformed(pipe, sample, denoisers, calls)

    @cached_property
    def enabled(self) -> Transformed:
        """The first request to a pipeline with the aperiodic table."""
        return self.run(dqar_fx.enable(self.stock.make(), self.schedule))

    @cached_property
    def bare(self) -> Transformed:
        """The same where denoisers stand in a pipeline that nothing is known of.

        They share what was captured of the others, and nothing else.
        """
        pipe = self.stock.make()
        for name, denoiser in self.enabled.denoisers.items():
            twin = denoiser.with_schedule(self.schedule)
            twin.follow_scheduler(None)
            setattr(pipe, name, twin)
        return self.run(pipe)

    @cached_property
    def expected(self) -> Expected:
        """What the oracle gives with the tables of the transformed denoisers."""
        return self.follow(read_tables(self.enabled.denoisers))

    def follow(self, tables: dict[str, ActionsByPath], seed: int = SEED) -> Expected:
        """What the oracle gives with given tables."""
        pipe = self.stock.make()
        with following(pipe, tables, self.plain.visits) as followers:
            sample = self.stock.call(pipe, seed)
        return Expected(sample, tables, {name: f.cold for name, f in followers.items()})

    @property
    def has_rows(self) -> bool:
        """Whether any call has a row, so that anything can be reused."""
        return any(visit.row is not None for visit in self.plain.visits)

    def visits_of(self, name: str) -> list[Visit]:
        """Where each call of a denoiser belongs."""
        return [visit for visit in self.plain.visits if visit.denoiser == name]


def read_tables(denoisers: Mapping[str, Any]) -> dict[str, ActionsByPath]:
    """What each site of each denoiser does at each row, in whichever program it is."""
    return {
        name: {
            path: program.table.actions[:, column]
            for program in denoiser.captured_programs()
            for column, path in enumerate(program.table.sites)
        }
        for name, denoiser in denoisers.items()
    }


def compare(found: torch.Tensor, wanted: torch.Tensor) -> Verdict:
    """Whether values are equal bit for bit, or else how far from each other."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return Verdict(False, f"{found.dtype} {[*found.shape]}, not {[*wanted.shape]}")
    if torch.equal(found, wanted):
        return Verdict(True, "equal")
    error = (found.double() - wanted.double()).norm() / wanted.double().norm()
    return Verdict(False, f"differs by {error:.1e}")


def check_exact(trial: Trial) -> Verdict:
    """Computing everything equals the untouched pipeline bit for bit."""
    return compare(trial.computed, trial.plain.sample)


def check_oracle(trial: Trial) -> Verdict:
    """The aperiodic table gives what the oracle gives, not what the pipeline gives."""
    return judge_oracle(trial, trial.enabled)


def judge_oracle(trial: Trial, found: Transformed) -> Verdict:
    """Whether a request gave what the oracle gives."""
    if trial.has_rows and torch.equal(trial.expected.sample, trial.plain.sample):
        return Verdict(False, "reuse changes nothing")
    return compare(found.sample, trial.expected.sample)


def check_rows(trial: Trial) -> Verdict:
    """At each call, the denoiser's step is the scheduler's."""
    return judge_rows(trial, trial.enabled)


def judge_rows(trial: Trial, found: Transformed) -> Verdict:
    """Whether each call of a request was at the scheduler's step."""
    num_wrong = num_calls = 0
    for name, calls in found.calls.items():
        wanted = trial.visits_of(name)
        if len(calls) != len(wanted):
            return Verdict(False, f"{len(calls)} of {len(wanted)} calls")
        for call, visit in zip(calls, wanted, strict=True):
            num_wrong += visit.row not in (None, call.step)
        num_calls += len(calls)
    return Verdict(not num_wrong, f"{num_calls - num_wrong} of {num_calls}")


def check_as_promised(trial: Trial) -> Verdict:
    """At each call each site did what the table says, unless its stream had kept nothing."""
    reused = promised = 0
    for name, calls in trial.enabled.calls.items():
        table, cold = trial.expected.tables[name], trial.expected.cold[name]
        for call, visit, cold_paths in zip(calls, trial.visits_of(name), cold, strict=True):
            done = dict(zip(call.table.sites, map(Action, call.actions), strict=True))
            row = dict.fromkeys(done, Action.COMPUTE)
            if visit.row is not None:
                row = {path: Action(int(table[path][visit.row])) for path in done}
            broken = find_broken(call, visit, row, done, cold_paths)
            if broken is not None:
                return Verdict(False, broken)
            reused += sum(action == Action.REUSE for action in done.values())
            promised += sum(action == Action.REUSE for action in row.values())
    return Verdict(reused > 0 or not trial.has_rows, f"{reused} of {promised} cells")


def find_broken(
    call: Any,
    visit: Visit,
    row: Mapping[str, Action],
    done: Mapping[str, Action],
    cold: Collection[str],
) -> str | None:
    """What a call did otherwise than promised; None if nothing.

    Args:
        call: What the denoiser wrote down.
        visit: Where the call belongs.
        row: What each site should do.
        done: What each site did.
        cold: Sites whose stream had kept nothing.
    """
    may_compute = {*cold} if visit.row is not None else {*done}
    for path, action in done.items():
        if action != row[path] and not (path in may_compute and action in COMPUTED):
            return f"row {visit.row}, {path}: {action.name}, not {row[path].name}"
    if visit.row is None:
        # at first nothing has stepped apart yet, and elsewhere nothing may be promised
        is_told = call.reason or call.step == 0 or not call.num_promised
        return None if is_told else "no row, and no reason is given"
    if call.num_cold != len(cold):
        return f"row {visit.row}: {call.num_cold} cold, not {len(cold)}"
    return None


def check_again(trial: Trial) -> Verdict:
    """Another request to the same pipeline gives what the oracle gives for it."""
    second = trial.run(trial.enabled.pipe, OTHER_SEED)
    return compare(second.sample, trial.follow(trial.expected.tables, OTHER_SEED).sample)


def check_bare(trial: Trial) -> Verdict:
    """The oracle's values and the scheduler's steps, with denoisers put into the pipeline."""
    verdicts = judge_oracle(trial, trial.bare), judge_rows(trial, trial.bare)
    wrong = [verdict.word for verdict in verdicts if not verdict.is_right]
    return Verdict(not wrong, ", ".join(wrong) or "equal")


Check = Callable[[Trial], Verdict]

CHECKS: dict[str, Check] = {
    "exact": check_exact,
    "oracle": check_oracle,
    "rows": check_rows,
    "as_promised": check_as_promised,
    "again": check_again,
    "bare": check_bare,
}
