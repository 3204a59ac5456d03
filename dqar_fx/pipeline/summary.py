"""What a run reused, beside what its table promised: the table that is printed after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tabulate import tabulate

from dqar_fx.costs.workload_counter import WorkloadCounter
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import DqarError
from dqar_fx.json_value import JsonValue
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.table import READING
from dqar_fx.steps.runs import count_reasons, name_stretch

from .enable import find_denoisers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dqar_fx.steps.runs import LoggedCall, Run
    from dqar_fx.steps.stream_key import StreamKey

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class StreamSummary(JsonValue):
    """What one stream of a run did.

    Attributes:
        name: Its name from ``cache_context``, else the number of its call in a step.
        steps: The rows that were walked, one per call.
        promised: Cells that the table lets read, in these rows.
        computed: Cells that were computed and not kept.
        stored: Cells that were computed and kept.
        reused: Cells that read what was kept.
        forecast: Cells that read a forecast from it.
        cold: Cells that should have read, and computed.
        skipped: Calls that were answered from the whole output, without the model.
        reasons: Why cells did not read though the table lets them: how many, by reason.
        macs: Multiply-accumulates of the steps, without conditioning; None where its graphs
            are not there any more.
        computed_macs: The same if all had been computed.
        milliseconds: What the calls took; None where that was not asked for.
    """

    name: str
    steps: tuple[int, ...]
    promised: int
    computed: int
    stored: int
    reused: int
    forecast: int
    cold: int
    skipped: int
    reasons: dict[str, int]
    macs: int | None
    computed_macs: int | None
    milliseconds: float | None

    @property
    def num_cells(self) -> int:
        """Cells of all rows that were walked, but those that a site around them covers."""
        return self.computed + self.stored + self.reused + self.forecast

    @property
    def share_of_macs(self) -> float | None:
        """Multiply-accumulates by those of computing everything; None where not known."""
        if self.macs is None or not self.computed_macs:
            return None
        return self.macs / self.computed_macs


@dataclass(frozen=True)
class RunSummary(JsonValue):
    """What one run of one denoiser did.

    Attributes:
        denoiser: Its place in the pipeline, or its class.
        clock: What told the step, see `dqar_fx.steps.runs.Run`.
        first: The step that the run began with.
        last: The last step that was called.
        length: Steps of the whole run, where known.
        num_runs: Runs whose logs are kept.
        restarts: How many runs in a row before it ended long before their last step.
        streams: What each stream did.
        num_solver_steps: Steps of the scheduler in the whole run, where known; fewer than
            `length` where one calls the denoiser several times: rows are evaluations.
    """

    denoiser: str
    clock: str
    first: int
    last: int
    length: int | None
    num_runs: int
    restarts: int
    streams: tuple[StreamSummary, ...]
    num_solver_steps: int | None = None

    @property
    def reused(self) -> int:
        """Cells that read what was kept, or a forecast from it."""
        return sum(stream.reused + stream.forecast for stream in self.streams)

    @property
    def promised(self) -> int:
        """Cells that the table lets read."""
        return sum(stream.promised for stream in self.streams)

    @property
    def reasons(self) -> dict[str, int]:
        """Why cells did not read though the table lets them: how many, by reason."""
        found: dict[str, int] = {}
        for stream in self.streams:
            for reason, cells in stream.reasons.items():
                found[reason] = found.get(reason, 0) + cells
        return found

    def __str__(self) -> str:
        lines = [f"{self.denoiser}: {name_stretch(self)}"]
        rows = [format_stream(stream) for stream in self.streams]
        lines.append(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
        lines.append(
            f"reused {self.reused} of the {self.promised} cells that the table promised"
        )
        lines += [f"  {cells} not: {reason}" for reason, cells in self.reasons.items()]
        if self.restarts:
            lines.append(f"the {self.restarts} runs before it ended far from their last step")
        return "\n".join(lines)


@dataclass(frozen=True)
class Summary(JsonValue):
    """What the latest run of a pipeline did.

    Attributes:
        runs: One for each denoiser that was called.
        never_called: Denoisers that were not.
    """

    runs: tuple[RunSummary, ...]
    never_called: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        parts = [str(run) for run in self.runs]
        parts += [f"{name}: was not called yet" for name in self.never_called]
        return "\n\n".join(parts)


def summary(pipe: Any, run: int = -1) -> Summary:
    """Tell what a run reused, beside what the table promised.

    Args:
        pipe: A pipeline with a transformed denoiser, by `enable` or by hand; or a denoiser.
        run: Which of the latest runs; the last one by default.

    Raises:
        DqarError: The pipeline has no transformed denoiser, or there is no such run.
    """
    if isinstance(pipe, Denoiser):
        denoisers = {type(pipe.model).__name__: pipe}
    else:
        denoisers = find_denoisers(pipe)
    if not denoisers:
        raise DqarError(
            f"this {type(pipe).__name__} has no transformed denoiser: expected one that was "
            "given to dqar_fx.enable(pipe, schedule), or whose transformer is a denoiser"
        )
    called = {name: denoiser for name, denoiser in denoisers.items() if denoiser.runs}
    try:
        runs = [(name, d.runs[run], len(d.runs)) for name, d in called.items()]
    except IndexError:
        kept = max(len(denoiser.runs) for denoiser in called.values())
        raise DqarError(f"there is no run {run}: the logs of {kept} are kept") from None
    counters: dict[int, WorkloadCounter] = {}
    return Summary(
        tuple(summarise_run(*each, counters) for each in runs),
        tuple(name for name in denoisers if name not in called),
    )


def summarise_run(
    name: str, run: Run, num_runs: int, counters: dict[int, WorkloadCounter]
) -> RunSummary:
    """Tell what one run of a denoiser did; ``counters`` are those of its graphs."""
    by_stream: dict[StreamKey, list[LoggedCall]] = {}
    for call in run.calls:
        by_stream.setdefault(call.stream, []).append(call)
    streams = tuple(summarise_stream(key, calls, counters) for key, calls in by_stream.items())
    facts = (run.clock, run.first, run.last, run.length, num_runs, run.restarts)
    return RunSummary(name, *facts, streams, run.num_solver_steps)


def summarise_stream(
    key: StreamKey, calls: Sequence[LoggedCall], counters: dict[int, WorkloadCounter]
) -> StreamSummary:
    """Tell what one stream did."""
    name, number = key[:2]
    times = [call.milliseconds for call in calls]
    macs = [count_macs(call, counters) for call in calls]
    return StreamSummary(
        name=f"call {number}" if name is None else f"{name} {number}" if number else name,
        steps=tuple(call.step for call in calls),
        promised=sum(call.num_promised for call in calls),
        computed=total(calls, Action.COMPUTE),
        stored=total(calls, Action.STORE),
        reused=total(calls, Action.REUSE),
        forecast=total(calls, Action.FORECAST),
        cold=sum(call.num_cold for call in calls),
        skipped=sum(call.is_whole and call.count(*READING) for call in calls),
        reasons=count_reasons(calls),
        macs=add(own for own, _ in macs),
        computed_macs=add(full for _, full in macs),
        milliseconds=add(times),
    )


def total(calls: Iterable[LoggedCall], action: Action) -> int:
    """How many cells of some calls did that."""
    return sum(call.count(action) for call in calls)


def add(values: Iterable[Number | None]) -> Number | None:
    """The sum; None if one of the values is not known."""
    known = list(values)
    return None if any(value is None for value in known) else sum(v for v in known if v)


def count_macs(
    call: LoggedCall, counters: dict[int, WorkloadCounter]
) -> tuple[int | None, int | None]:
    """The multiply-accumulates of a call's step, and those if all had been computed."""
    program = call.program()
    if program is None:
        return None, None
    plan = program.plan
    if id(plan) not in counters:
        counters[id(plan)] = WorkloadCounter(program)
    counter = counters[id(plan)]
    everything = (Action.COMPUTE,) * len(program.table.sites)
    full = sum_macs(counter, everything)
    if call.is_whole:
        return (0 if call.count(*READING) else None), full
    return sum_macs(counter, tuple(Action(int(a)) for a in call.actions)), full


def sum_macs(counter: WorkloadCounter, actions: tuple[Action, ...]) -> int:
    """The multiply-accumulates of a row."""
    kernels = counter.count_row(actions).kernels
    return sum(kernel.macs * times for kernel, times in kernels.items())


def format_stream(stream: StreamSummary) -> dict[str, str]:
    """One line of the table."""
    share = stream.share_of_macs
    line = {
        "stream": stream.name,
        "calls": str(len(stream.steps)),
        "computed": str(stream.computed + stream.stored),
        "reused": str(stream.reused),
        "promised": str(stream.promised),
        "cold": str(stream.cold),
        "MACs": "-" if share is None else f"{share:.1%}",
    }
    if stream.forecast:
        line["forecast"] = str(stream.forecast)
    if stream.skipped:
        line["calls saved"] = str(stream.skipped)
    if stream.milliseconds is not None:
        line["ms"] = f"{stream.milliseconds:.1f}"
    return line
