"""What a denoiser's rows and trajectory cost, and where the rest goes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate

from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import DqarError
from dqar_fx.json_value import JsonValue
from dqar_fx.schedule.run import kind_of_rows, name_rows
from dqar_fx.schedule.schedule import as_schedule

from .kernels import COST_KINDS
from .measure_profile import measure_profile
from .memory import MemoryPlan, plan_memory
from .profile import DATASHEETS, Cost, DeviceProfile, add_costs, find_datasheet
from .rows import (
    StreamTable,
    all_computed,
    all_computed_table,
    all_reused,
    streams_of,
    with_schedule,
)
from .workload_counter import WorkloadCounter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dqar_fx.schedule.schedule import Schedule

    Device = str | torch.device | DeviceProfile | None

MEASURED_TYPES = ("cpu", "cuda", "mps", "xpu")
MAX_LINES = 24
"""Most distinct rows that are printed; JSON has all of them."""


@dataclass(frozen=True)
class RowReport:
    """One distinct row of the branch table.

    Attributes:
        stream: 0, or 1 for guidance's unconditional stream.
        actions: Letters of its actions, one per site.
        steps: The steps at which it stands in the table.
        costs: What one such step costs by kind, conditioning left out.
    """

    stream: int
    actions: str
    steps: tuple[int, ...]
    costs: dict[str, Cost]

    @property
    def cost(self) -> Cost:
        """What one such step costs."""
        return add_costs(self.costs.values())


@dataclass(frozen=True)
class Report(JsonValue):
    """Costs of one trajectory, of all streams that the denoiser tells apart.

    A trajectory of a new prompt, whose conditioning is evaluated once: a later one of the same
    prompt and timesteps finds it, and takes less by `conditioning`.

    Attributes:
        device: Name of the device that the times are predicted for.
        source: ``"measured"`` or ``"datasheet"``: what the prediction is made from.
        how: What ``source`` says, in words; what was measured is ``"measured by regions"`` or
            ``"measured by operators"``.
        lowering: ``"regional"``, ``"whole"`` or ``"eager"``.
        num_steps: Steps of the trajectory: evaluations of the denoiser per stream.
        rows: The distinct rows.
        conditioning: What the conditioning of the whole trajectory costs, for a new prompt.
            It is taken to be evaluated for all timesteps at once where the denoiser does so
            if they are known, and once where it does not read the timestep.
        cache_bytes: Bytes of the slots.
        untransformed_macs: Multiply-accumulates of the model's own trajectory.
        computed_ms: Milliseconds of the trajectory that computes every site, lowered in the
            same way.
        reused: What one step costs in which every site reads what is kept.
        computed: What one step costs in which every site computes.
        memory: What the denoiser holds.
        num_solver_steps: Steps of the solver; fewer where one evaluates several times.
        denoiser: The denoiser that it is the report of, for `to_html`; None if it was read
            from JSON. Equality and JSON leave it out.
    """

    device: str
    source: str
    how: str
    lowering: str
    num_steps: int
    rows: tuple[RowReport, ...]
    conditioning: Cost
    cache_bytes: int
    untransformed_macs: int
    computed_ms: float
    reused: Cost
    computed: Cost
    memory: MemoryPlan
    num_solver_steps: int | None = None
    denoiser: Denoiser | None = field(default=None, repr=False, compare=False)

    @property
    def costs(self) -> dict[str, Cost]:
        """What the trajectory costs by kind: where the time goes."""
        total = {
            kind: add_costs(row.costs[kind] * len(row.steps) for row in self.rows)
            for kind in COST_KINDS
        }
        total["conditioning"] += self.conditioning
        return total

    @property
    def cost(self) -> Cost:
        """What the trajectory costs."""
        return add_costs(self.costs.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the trajectory."""
        return self.cost.macs

    @property
    def ms(self) -> float:
        """Predicted milliseconds of the trajectory."""
        return self.cost.ms

    @property
    def ceiling(self) -> float:
        """Speed against the untransformed model if MACs alone took time."""
        return self.untransformed_macs / self.macs

    @property
    def full_reuse_ceiling(self) -> float:
        """Amdahl's limit: the ceiling if every site were reused at every step, at no cost."""
        streams = 1 + max(row.stream for row in self.rows)
        least = self.reused.macs * self.num_steps * streams + self.conditioning.macs
        return self.untransformed_macs / least if least else math.inf

    @property
    def speed(self) -> float:
        """Predicted speed against computing every site, lowered in the same way."""
        return self.computed_ms / self.ms

    @property
    def named_rows(self) -> str:
        """How many rows there are, in words: steps, or evaluations and the solver's steps."""
        return name_rows(self.num_steps, self.num_solver_steps)

    def to_html(self, path: str | Path) -> None:
        """Write a page with all of it, the branch table, its reasons and the graphs of rows.

        The page is one file that loads nothing else.

        Args:
            path: The file to write.

        Raises:
            DqarError: The report was read from JSON, which has no graphs.
        """
        from dqar_fx.inspect.html import write_html  # draws what this module counts

        write_html(self, path)

    def __str__(self) -> str:
        kind, _ = kind_of_rows(self.num_steps, self.num_solver_steps)
        shown = [format_row(row, kind) for row in self.rows[:MAX_LINES]]
        left = len(self.rows) - len(shown)
        parts = [
            f"{self.device} ({self.how}), {self.lowering}, {self.named_rows}",
            format_table(shown),
            *([f"and {left} rows more"] if left else []),
            format_table([format_kind(*each, self.ms) for each in self.costs.items()]),
            f"trajectory of a new prompt {self.ms:.1f} ms, {self.macs / 1e9:.3f} GMACs; slots "
            f"{self.cache_bytes / 1e6:.3f} MB",
            f"speed {self.speed:.3f} against computing all; ceiling by MACs "
            f"{self.ceiling:.3f}, {self.full_reuse_ceiling:.3f} if all were reused always",
        ]
        return "\n".join([*parts, str(self.memory)])


def format_table(rows: list[dict[str, str]]) -> str:
    """Format a table of texts."""
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def format_row(row: RowReport, kind: str) -> dict[str, str]:
    """Format one line of the table of rows, which are steps or evaluations."""
    sites = run_lengths(row.actions) + (" (unconditional)" if row.stream else "")
    return {"sites": sites, kind: str(len(row.steps)), **format_cost(row.cost, decimals=3)}


def format_kind(kind: str, cost: Cost, whole_ms: float) -> dict[str, str]:
    """Format one line of where the time goes."""
    share = f"{cost.ms / whole_ms:.1%}" if whole_ms else "-"
    return {"where": kind, **format_cost(cost, decimals=1), "share": share}


def format_cost(cost: Cost, *, decimals: int) -> dict[str, str]:
    """Format the columns of a cost; milliseconds have so many decimals."""
    return {
        "GMACs": f"{cost.macs / 1e9:.3f}",
        "MB": f"{cost.nbytes / 1e6:.1f}",
        "ms": f"{cost.ms:.{decimals}f}",
    }


def run_lengths(letters: str) -> str:
    """Shorten ``"SSSRR"`` to ``"3S 2R"``."""
    return " ".join(f"{len(list(run))}{letter}" for letter, run in groupby(letters))


def compare(
    denoiser: Denoiser, schedules: Mapping[str, Schedule | str], *, device: Device = None
) -> dict[str, Report]:
    """Make a report for each of several schedules.

    With a datasheet, a device's name or a profile nothing is compiled.

    Args:
        denoiser: The denoiser, captured already; how it lowers, and what it keeps, is taken
            over.
        schedules: The schedules, or names of schedule tiers, by what they are called; those
            without a number of steps in a run as the denoiser's own table is for.
        device: The device, as for `Denoiser.report`; it is measured once for all.

    Raises:
        DqarError: Nothing has been captured yet, or the device is unknown.
        ScheduleError: A schedule does not fit the sites.
    """
    given = {name: as_schedule(each) for name, each in schedules.items()}
    others = {name: with_schedule(denoiser, each) for name, each in given.items()}
    profile = profile_of(denoiser, tuple(given.values()), device)
    counter = WorkloadCounter(denoiser.program)
    return {name: make_report(other, counter, profile) for name, other in others.items()}


def report_of(denoiser: Denoiser, schedule: Schedule | str | None, device: Device) -> Report:
    """Make what `Denoiser.report` gives."""
    own = denoiser if schedule is None else with_schedule(denoiser, schedule)
    profile = profile_of(own, (), device)
    return make_report(own, WorkloadCounter(denoiser.program), profile)


def profile_of(
    denoiser: Denoiser, schedules: tuple[Schedule, ...], device: Device
) -> DeviceProfile:
    """Find or measure the profile that stands for a device.

    Raises:
        DqarError: The device is unknown, or cannot be used.
    """
    if isinstance(device, DeviceProfile):
        return device
    if device is not None and not isinstance(device, str | torch.device):
        raise DqarError(
            f"device={device!r}: expected the name of a datasheet ({', '.join(DATASHEETS)}), "
            "a device of this machine such as 'cpu', a dqar_fx.DeviceProfile, or None"
        )
    if isinstance(device, str) and device.partition(":")[0] not in MEASURED_TYPES:
        return find_datasheet(device)
    by = "regions" if device is None and has_regions(denoiser) else "operators"
    return measure_profile(denoiser, schedules, device=device, by=by)


def has_regions(denoiser: Denoiser) -> bool:
    """Whether regions can be measured, and are few: compiled whole, each row is one."""
    program = denoiser.program
    is_whole = not program.lowering.backend.cuts_blocks
    return denoiser.device.type != "meta" and not is_whole and program.fixed is None


def make_report(
    denoiser: Denoiser, counter: WorkloadCounter, profile: DeviceProfile
) -> Report:
    """Count and predict with the tables of a denoiser that was captured already."""
    program, streams = denoiser.program, streams_of(denoiser)
    steps = program.table.num_steps
    ends = [counter.count_row(find(program)) for find in (all_computed, all_reused)]
    everything = StreamTable(all_computed_table(program, steps), (True,) * steps)
    aheads = [counter.count_conditioning(each) for each in (everything, *streams)]
    rows = [(number, *each) for number, one in enumerate(streams) for each in one.rows()]
    counted = (counter.count_row(row) for _, row, _ in rows)
    profile = profile.for_all([*aheads, *ends, *counted])
    computed, reused = (add_costs(profile.costs_of(work).values()) for work in ends)
    computed_ahead, *costs = (add_costs(profile.costs_of(w).values()) for w in aheads)
    conditioning = add_costs(costs)
    return Report(
        device=profile.name,
        source=profile.source,
        how=profile.how,
        lowering=program.lowering.backend.name,
        num_steps=steps,
        num_solver_steps=program.table.num_solver_steps,
        rows=tuple(
            RowReport(
                number,
                "".join(action.letter for action in row),
                mine,
                profile.costs_of(counter.count_row(row)),
            )
            for number, row, mine in rows
        ),
        conditioning=conditioning,
        cache_bytes=denoiser.cache_bytes,
        untransformed_macs=counter.count_untransformed() * steps * len(streams),
        computed_ms=(computed.ms * steps + computed_ahead.ms) * len(streams),
        reused=reused,
        computed=computed,
        memory=plan_memory(denoiser, counter.activations),
        denoiser=denoiser,
    )
