"""What rows, conditioning and trajectories of a program run: kernels, calls and steps.

Counted on the graphs that run: a row is bound to variants of regions as `Program` does it, and
what it leaves dead is dropped, but no variant is lowered.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import ScheduleError
from dqar_fx.passes.pipeline import COMPILED, select_passes
from dqar_fx.passes.support.graphs import structure_of
from dqar_fx.passes.support.runner import run_passes
from dqar_fx.plan.liveness import Liveness, restrict
from dqar_fx.plan.plan import Variant, bind
from dqar_fx.program.lowering import narrow_stage, specialise_region
from dqar_fx.schedule.schedule import Schedule

from .activations import Activations
from .kernels import KINDS, Kernel, Modules, computes, find_kernels, source_of
from .operation import Operation, count_macs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import fx

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.plan.liveness import Live
    from dqar_fx.plan.plan import Plan, Specialised
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.action import Action
    from dqar_fx.schedule.table import BranchTable

    from .profile import DeviceProfile


@dataclass(frozen=True)
class Cost:
    """Of a part of a trajectory.

    Attributes:
        macs: Multiply-accumulates.
        nbytes: Bytes read and written.
        ms: Predicted milliseconds.
    """

    macs: int = 0
    nbytes: int = 0
    ms: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.nbytes + other.nbytes, self.ms + other.ms)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.macs * times, self.nbytes * times, self.ms * times)


@dataclass(frozen=True)
class Workload:
    """Kernels, and what is done around them.

    Attributes:
        kernels: How often each kernel runs.
        calls: Calls of regions.
        inputs: Tensors that they are given.
        steps: Steps.
        regions: How often each region is called, by `region_key`, and `ahead_key` for what is
            evaluated ahead.
    """

    kernels: Counter[Kernel] = field(default_factory=Counter)
    calls: int = 0
    inputs: int = 0
    steps: int = 0
    regions: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Workload) -> Workload:
        return Workload(
            self.kernels + other.kernels,
            self.calls + other.calls,
            self.inputs + other.inputs,
            self.steps + other.steps,
            self.regions + other.regions,
        )

    def __or__(self, other: Workload) -> Workload:
        """Of each kernel and region as many as in the one that has more."""
        return replace(
            self,
            kernels=self.kernels | other.kernels,
            regions=self.regions | other.regions,
        )

    def scaled(self, factor: int) -> Workload:
        """The same for ``factor`` times the rows."""
        scaled = Counter({kernel.scaled(factor): n for kernel, n in self.kernels.items()})
        return replace(self, kernels=scaled)

    def named(self, kind: str) -> Workload:
        """The same, all of one kind."""
        renamed = Counter[Kernel]()
        for kernel, count in self.kernels.items():
            renamed[replace(kernel, kind=kind)] += count
        return replace(self, kernels=renamed)

    def operations(self) -> Counter[Operation]:
        """Operators that are timed, and how often they occur."""
        found = Counter[Operation]()
        for kernel, count in self.kernels.items():
            for operation in kernel.timed:
                found[operation] += count
        return found

    def costs(self, profile: DeviceProfile) -> dict[str, Cost]:
        """Costs by kind; what a kernel takes for slots is that of slots.

        Where the profile knows the regions, these take what was measured, and kinds share it
        as their kernels would.
        """
        costs = dict.fromkeys(KINDS, Cost())
        for kernel, count in self.kernels.items():
            ms = 1e3 * profile.predict(kernel)
            slots_ms = ms * kernel.slot_bytes / kernel.nbytes if not kernel.macs else 0.0
            own = Cost(kernel.macs, kernel.nbytes - kernel.slot_bytes, ms - slots_ms)
            costs[kernel.kind] += own * count
            costs["slots"] += Cost(0, kernel.slot_bytes, slots_ms) * count
        around_s = self.calls * profile.call_s + self.inputs * profile.input_s
        costs["overhead"] += Cost(ms=1e3 * around_s)
        if profile.knows_regions(self):
            total_s = sum(n * profile.region_s[key] for key, n in self.regions.items())
            costs = share_out(costs, 1e3 * total_s)
        costs["overhead"] += Cost(ms=1e3 * self.steps * profile.step_s)
        return costs


def share_out(costs: dict[str, Cost], total_ms: float) -> dict[str, Cost]:
    """The same costs with times in the same proportions that add up to a total."""
    before_ms = sum(cost.ms for cost in costs.values())
    factor = total_ms / before_ms if before_ms else 0.0
    return {kind: replace(cost, ms=cost.ms * factor) for kind, cost in costs.items()}


def region_key(structure: str) -> str:
    """A short name of a lowered region: equal for regions of equal structure."""
    return hashlib.sha256(structure.encode()).hexdigest()[:16]


def ahead_key(num_steps: int) -> str:
    """A name of the conditioning that is evaluated for so many steps at once."""
    return f"conditioning of {num_steps} steps"


class Counting:
    """Counts workloads of one plan, each distinct variant of a region once.

    Args:
        program: Whose plan; its table does not matter.

    Attributes:
        activations: Bytes of the same plan's rows.
    """

    def __init__(self, program: Program) -> None:
        self.plan = program.plan
        self._roles = program.roles
        self._captured = program.captured.gm
        self._modules = Modules.of(self._captured)
        self._is_compiled = program.lowering.backend.is_compiled
        self._disable = program.lowering.options.disable
        self._ahead = program.ahead
        self.activations = Activations(program)
        self._liveness = Liveness(
            self.plan, (), self._variants_of, is_compiled=self._is_compiled
        )
        self._known: dict[Any, tuple[Counter[Kernel], tuple[int, ...], str]] = {}
        self._rows: dict[tuple[Action, ...], Workload] = {}

    def count_untransformed(self) -> int:
        """Multiply-accumulates of one step of the captured model."""
        nodes = [node for node in self._captured.graph.nodes if computes(node)]
        return sum(count_macs(Operation.of(node, source_of)) for node in nodes)

    def count_row(self, actions: tuple[Action, ...]) -> Workload:
        """One step with these actions, without conditioning."""
        if actions not in self._rows:
            self._rows[actions] = replace(self._count_plan(self.plan, actions), steps=1)
        return self._rows[actions]

    def count_conditioning(self, stream: Stream) -> Workload:
        """That of a new prompt's trajectory, of what its rows read.

        For all steps at once where it is evaluated so.
        """
        liveness = self._liveness.for_rows(stream.table.rows)
        aheads = [self._is_ahead(k, stream, liveness) for k in range(len(self.plan.stages))]
        total = Workload()
        for k, is_ahead in enumerate(aheads):
            count = self._count_ahead if is_ahead else self._count_stage
            total += count(k, stream, liveness)
        if any(aheads):
            total += Workload(regions=Counter([ahead_key(stream.table.num_steps)]))
        return total.named("conditioning")

    def count_needed(self, lives: Sequence[Live]) -> Workload:
        """What one step has evaluated that reads the timestep, given what it reads."""
        total = Workload()
        for stage, live in zip(self.plan.stages, lives, strict=True):
            if self._roles.timestep in stage.leaves:
                total += self._count_plan(restrict(stage, live), ())
        return total

    def _is_ahead(self, k: int, stream: Stream, liveness: Liveness) -> bool:
        """Whether a stage is evaluated for all steps at once."""
        stage, live = self.plan.stages[k], liveness.of_table()[k]
        reads_time = self._roles.timestep in stage.leaves
        fits = self._ahead.allows(stream.table.num_steps * stage.count_bytes(live))
        return self._ahead.is_wanted and reads_time and fits

    def _count_ahead(self, k: int, stream: Stream, liveness: Liveness) -> Workload:
        """A stage that is evaluated for all steps at once."""
        live = liveness.of_table()[k]
        gm, _, _ = narrow_stage(self.plan.stages[k].gm, live, self._disable)
        kernels = find_kernels(gm.graph, self._modules, fused=False)
        return Workload(kernels).scaled(stream.table.num_steps)

    def _count_stage(self, k: int, stream: Stream, liveness: Liveness) -> Workload:
        """A stage that is evaluated at each step that reads it, or once."""
        stage, live = self.plan.stages[k], liveness.of_table()[k]
        if self._roles.timestep not in stage.leaves:
            return self._count_plan(restrict(stage, live), ())
        total = Workload()
        for row, steps in stream.rows():
            mine = self._count_plan(restrict(stage, liveness.needs(row).step[k]), ())
            for _ in steps:
                total += mine
        return total

    def _count_plan(self, plan: Plan, actions: Sequence[int]) -> Workload:
        """The bound calls of a plan."""
        counted = Counted()
        calls = bind(plan, actions, self._variants_of(plan, counted), lambda static: None)
        inputs = sum(len(call.inputs) + len(call.static) for call in calls)
        return Workload(counted.kernels, len(calls), inputs, regions=counted.regions)

    def _variants_of(self, plan: Plan, counted: Counted | None = None) -> Specialised:
        """What gives variants that are not lowered, and counts them."""

        def specialised(
            region: str, mine: tuple[Action, ...], live: tuple[bool, ...]
        ) -> Variant:
            found, kept, key = self._count_variant(plan.regions[region], mine, live)
            if counted is not None:
                counted.kernels.update(found)
                counted.regions[key] += 1
            return Variant(plan.regions[region], return_nothing, kept, key)

        return specialised

    def _count_variant(
        self, region: fx.GraphModule, actions: tuple[Action, ...], live: tuple[bool, ...]
    ) -> tuple[Counter[Kernel], tuple[int, ...], str]:
        key = (region, actions, live)
        if key not in self._known:
            gm, kept, _ = specialise_region(region, actions, live)
            structure = region_key(structure_of(gm))
            if self._is_compiled:
                passes = select_passes(COMPILED, self._disable)
                run_passes(gm, passes, graph="region", observe=None)
            found = find_kernels(gm.graph, self._modules, fused=self._is_compiled)
            self._known[key] = found, kept, structure
        return self._known[key]


@dataclass
class Counted:
    """What the calls of a plan add up to.

    Attributes:
        kernels: How often each runs.
        regions: How often each is called, by `region_key`.
    """

    kernels: Counter[Kernel] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)


def return_nothing(*_: Any) -> tuple[Any, ...]:
    """In the place of a lowered region, which nobody calls."""
    return ()


@dataclass(frozen=True)
class Stream:
    """What one stream does.

    Attributes:
        table: Its branch table.
        called: Per step, whether the denoiser runs at all.
    """

    table: BranchTable
    called: tuple[bool, ...]

    def rows(self) -> Iterator[tuple[tuple[Action, ...], tuple[int, ...]]]:
        """The distinct rows, each with its steps."""
        for row in self.table.rows:
            steps = [k for k, is_called in enumerate(self.called) if is_called]
            mine = tuple(step for step in steps if self.table.row(step) == row)
            if mine:
                yield row, mine


def streams_of(denoiser: Denoiser) -> list[Stream]:
    """The streams that a denoiser knows to be apart: one, or the two of guidance.

    Raises:
        DqarError: Nothing has been captured yet.
    """
    table = denoiser.program.table
    streams = [Stream(table, (True,) * table.num_steps)]
    if hasattr(denoiser, "guidance"):
        other, output = denoiser.unconditional.table, denoiser.guidance_table
        called = (True,) * other.num_steps
        if output is not None:
            called = tuple((~output.is_skipped[:, 0]).tolist())
        streams.append(Stream(other, called))
    return streams


def with_schedule(denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """The same denoiser with another schedule, for counting only.

    Raises:
        DqarError: Nothing has been captured yet.
        ScheduleError: The schedule does not fit the sites, or its forecasts read more steps
            than the graphs keep.
    """
    if not isinstance(schedule, Schedule):
        raise ScheduleError(f"expected a dqar_fx.Schedule, found {schedule!r}")
    program = denoiser.program
    table = schedule.resolve(program.table.sites, around=program.table.around)
    if table.history > program.history:
        raise ScheduleError(
            f"the schedule's forecasts read {table.history} steps of each site, but the "
            f"captured graphs keep {program.history}. Transform with the schedule that reads "
            "most, and compare the others with it"
        )
    return denoiser.with_schedule(schedule)


def all_reused(program: Program) -> tuple[Action, ...]:
    """The row in which each site reads what is kept, or is inside of one that does."""
    return stored_and_reused(program).row(1)


def all_stored(program: Program) -> tuple[Action, ...]:
    """The row in which each site computes for one that reuses all."""
    return stored_and_reused(program).row(0)


def stored_and_reused(program: Program) -> BranchTable:
    """The table of two steps in which each site is stored, then reused."""
    table = program.table
    return Schedule.from_actions("CR").resolve(table.sites, around=table.around)


def all_computed(program: Program) -> tuple[Action, ...]:
    """The row in which each site computes."""
    return all_computed_table(program, 1).row(0)


def all_computed_table(program: Program, num_steps: int) -> BranchTable:
    """The table in which each site computes at each step."""
    return Schedule.compute_all(num_steps).resolve(program.table.sites)


def count_everything(denoiser: Denoiser, schedules: Sequence[Schedule] = ()) -> Workload:
    """All kernels and regions that any step of a denoiser or of other schedules runs.

    Of each as many as one step has: what a profile is measured with.

    Raises:
        DqarError: Nothing has been captured yet.
        ScheduleError: A schedule does not fit the sites.
    """
    counting = Counting(denoiser.program)
    total = Workload()
    others = [with_schedule(denoiser, schedule) for schedule in schedules]
    for each in (denoiser, *others):
        for stream in streams_of(each):
            total |= counting.count_conditioning(stream)
    for row in list_rows(denoiser, schedules):
        total |= counting.count_row(row)
    return total


def list_rows(
    denoiser: Denoiser, schedules: Sequence[Schedule] = ()
) -> list[tuple[Action, ...]]:
    """Distinct rows of a denoiser and of other schedules; first those that do all alike.

    Raises:
        DqarError: Nothing has been captured yet.
        ScheduleError: A schedule does not fit the sites.
    """
    program = denoiser.program
    others = [with_schedule(denoiser, schedule) for schedule in schedules]
    rows = [all_computed(program), all_reused(program)]
    rows += [
        row
        for each in (denoiser, *others)
        for stream in streams_of(each)
        for row, _ in stream.rows()
    ]
    return list(dict.fromkeys(rows))
