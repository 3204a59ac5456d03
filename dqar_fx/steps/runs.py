"""The log of a run: what each call of the denoiser did, beside what the table promised."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dqar_fx.notices import Once
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.run import kind_of_rows
from dqar_fx.schedule.table import READING

from .reasons import LOST, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dqar_fx.schedule.table import BranchTable

    from .stream_key import StreamKey

KEPT_RUNS = 8
"""Runs whose logs a denoiser keeps."""


@dataclass(slots=True)
class LoggedCall:
    """What one call of the denoiser did.

    Attributes:
        step: The row of the branch table.
        stream: Which stream it was.
        table: What was promised.
        actions: What each site did, int8 ``[sites]``.
        num_cold: Sites that the table lets read what was not kept; they computed.
        why: Why not, or why everything was computed; None where all is as the table says.
        is_whole: Whether the one site is the whole output, and the model was not called if
            that was read.
        milliseconds: What the call took; None where that was not asked for.
        program: What ran it, while it is there.
    """

    step: int
    stream: StreamKey
    table: BranchTable
    actions: NDArray[np.int8]
    num_cold: int
    why: Reason | None
    is_whole: bool
    program: weakref.ref[Any]
    milliseconds: float | None = None

    @property
    def reason(self) -> str:
        """Why something was not reused, in words; empty where all is as the table says."""
        return "" if self.why is None else self.why.text

    def count(self, *actions: Action) -> int:
        """How many sites did one of these."""
        return int(np.isin(self.actions, actions).sum())

    @property
    def num_promised(self) -> int:
        """How many sites the table lets read something."""
        return int(np.isin(row_of(self.table, self.step), READING).sum())

    @property
    def num_lacking(self) -> int:
        """How many of these did not."""
        return self.num_promised - self.count(*READING)


@dataclass(eq=False)
class Run:
    """The calls of one denoiser in one run of the denoising loop.

    Attributes:
        clock: What told the step: ``"step_index"`` (of ``cache_context``), ``"scheduler"``,
            ``"place"`` (of the timestep in its tensor) or ``"value"`` (of the timestep).
        first: The step that it began with.
        length: Steps of the whole run, where known.
        token: What the clock knows the run by while it goes on; None where it does not.
        once: What warns of each reason at most once.
        calls: What was done, in order.
        is_ended: Whether no call will come any more.
        num_solver_steps: Steps of the scheduler in the whole run, where known; fewer than
            `length` where one calls the denoiser several times.
        restarts: How many runs in a row before this one ended long before their last step,
            where timesteps alone told where a run begins.
    """

    clock: str
    first: int
    length: int | None
    token: object = field(default=None, repr=False)
    once: Once = field(default_factory=Once, repr=False)
    calls: list[LoggedCall] = field(default_factory=list)
    is_ended: bool = False
    restarts: int = 0
    num_solver_steps: int | None = None

    @property
    def last(self) -> int:
        """The last step that was called."""
        return self.calls[-1].step if self.calls else self.first

    @property
    def num_reused(self) -> int:
        """Cells that read what was kept."""
        return sum(call.count(*READING) for call in self.calls)

    @property
    def num_promised(self) -> int:
        """Cells that the table lets read, in the rows that were walked."""
        return sum(call.num_promised for call in self.calls)

    @property
    def reasons(self) -> dict[str, int]:
        """How many cells did not reuse though the table lets them, by reason."""
        return count_reasons(self.calls)

    def note(
        self,
        where: tuple[int, StreamKey],
        reason: Reason | None,
        program: Any,
        actions: NDArray[np.int8],
        num_cold: int,
        whole: BranchTable | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Log a call that has run, and warn if it reused less than promised for a new reason.

        Args:
            where: Its step and stream.
            reason: Why something may not have been kept.
            program: What ran it; a `Program`.
            actions: What each site did, int8 ``[sites]``.
            num_cold: Sites that should have read what was not kept.
            whole: The table of the whole output, where that is what was done.
            alone: Whether everything was computed and nothing kept, whatever the table says.
        """
        table, (step, stream) = program.table if whole is None else whole, where
        is_lost = num_cold > 0 or (alone and not computes_all(table, step))
        why = (reason or LOST) if is_lost else None
        if why is not None and why.mend:
            self._warn(step, num_cold, len(actions), why)
        is_whole, reference = whole is not None, program.reference
        self.calls.append(
            LoggedCall(step, stream, table, actions, num_cold, why, is_whole, reference)
        )

    def _warn(self, step: int, num_cold: int, num_sites: int, why: Reason) -> None:
        done = "all sites compute and nothing is kept, whatever the table says"
        if num_cold:
            done = (
                f"{num_cold} of {num_sites} sites start cold: they compute, and should reuse"
            )
        self.once.warn(
            f"step {step}: {done}: {why.text}. What to do: {why.mend}",
            key=why.kind,
        )

    def describe(self) -> str:
        """One line: how far it went, what was reused and what was promised."""
        lacking = "".join(f"; {n} not, since {why}" for why, n in self.reasons.items())
        return (
            f"run of {name_stretch(self)}: {len(self.calls)} calls, "
            f"{self.num_reused} of {self.num_promised} promised cells reused{lacking}"
        )


class Stretched(Protocol):
    """Rows that were walked, of a run that may be longer."""

    @property
    def first(self) -> int:
        """The first row."""

    @property
    def last(self) -> int:
        """The last row that was called."""

    @property
    def length(self) -> int | None:
        """Rows of the whole run, where known."""

    @property
    def num_solver_steps(self) -> int | None:
        """Steps of the scheduler in the whole run, where known."""


def name_stretch(run: Stretched) -> str:
    """Name the rows of a run that were walked: steps, or evaluations where steps are fewer."""
    kind, more = kind_of_rows(run.length, run.num_solver_steps)
    length = "" if run.length is None else f" of {run.length}"
    return f"{kind} {run.first} to {run.last}{length}{more}"


def count_reasons(calls: Iterable[LoggedCall]) -> dict[str, int]:
    """How many cells of some calls did not reuse though the table lets them, by reason."""
    found = Counter[str]()
    for call in calls:
        if call.why is not None:
            found[call.reason] += call.num_lacking
    return {reason: cells for reason, cells in found.items() if cells}


def computes_all(table: BranchTable, step: int) -> bool:
    """Whether a table has such a step, and keeps and reads nothing at it."""
    row = row_of(table, step)
    return bool(row.size) and not row.any()


def row_of(table: BranchTable, step: int) -> NDArray[np.int8]:
    """The row of a step, int8 ``[1, sites]``; ``[0, sites]`` where a table has no such step.

    Where samples stand at different timesteps no row counts, and there may be more steps.
    """
    return table.actions[step : step + 1]
