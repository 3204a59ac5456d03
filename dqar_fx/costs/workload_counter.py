"""Counts what rows and conditioning run, on the graphs that run.

A row is bound to variants of regions as a program does it, and what it leaves dead is dropped,
but no variant is lowered.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from dqar_fx.passes.pipeline import COMPILED, select_passes
from dqar_fx.passes.support.graphs import structure_of
from dqar_fx.passes.support.runner import fork, run_passes
from dqar_fx.plan.liveness import Liveness, restrict
from dqar_fx.plan.unlowered import UnloweredRegions
from dqar_fx.program.lowering import narrow_stage

from .activations import Activations
from .kernels import Kernel, Modules, computes, find_kernels, source_of
from .operation import Operation, count_macs
from .rows import list_rows, streams_of, with_schedule
from .workload import Workload, ahead_key, region_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.plan.liveness import Live
    from dqar_fx.plan.plan import Plan
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.action import Action
    from dqar_fx.schedule.schedule import Schedule

    from .rows import StreamTable


class WorkloadCounter:
    """Counts workloads of a program's plan, each distinct variant of a region once.

    The program's table does not matter.
    """

    def __init__(self, program: Program) -> None:
        self.plan = program.plan
        regions = UnloweredRegions()
        self.activations = Activations(program, regions)
        self._regions = regions
        self._captured = program.captured.gm
        self._modules = Modules.of(self._captured)
        self._ahead, self._disable = program.ahead, program.lowering.options.disable
        self._liveness = Liveness(
            self.plan, (), regions.variants_of, is_compiled=self._ahead.is_compiled
        )
        self._counts: dict[fx.GraphModule, tuple[Counter[Kernel], str]] = {}
        self._rows: dict[tuple[Action, ...], Workload] = {}

    def count_untransformed(self) -> int:
        """Count the multiply-accumulates of one step of the captured model."""
        nodes = [node for node in self._captured.graph.nodes if computes(node)]
        return sum(count_macs(Operation.of(node, source_of)) for node in nodes)

    def count_row(self, actions: tuple[Action, ...]) -> Workload:
        """Count one step with these actions, without its conditioning."""
        if actions not in self._rows:
            self._rows[actions] = replace(self.count_plan(self.plan, actions), steps=1)
        return self._rows[actions]

    def count_conditioning(self, stream: StreamTable) -> Workload:
        """Count what a new prompt's trajectory evaluates of the conditioning.

        What its rows read is evaluated for all steps at once where the program does so.
        """
        liveness, num_steps = self._liveness.for_rows(stream.table.rows), stream.num_steps
        is_ahead = [
            self._ahead.tabulates(stage, live, num_steps)
            for stage, live in zip(self.plan.stages, liveness.of_table(), strict=True)
        ]
        total = Workload()
        for k, is_tabulated in enumerate(is_ahead):
            count = self._count_ahead if is_tabulated else self._count_stage
            total += count(k, stream, liveness)
        if any(is_ahead):
            total += Workload(regions=Counter([ahead_key(num_steps)]))
        return total.named("conditioning")

    def count_needed(self, lives: Sequence[Live]) -> Workload:
        """Count what one step evaluates of the stages that read the timestep, and is live."""
        total = Workload()
        for stage, live in zip(self.plan.stages, lives, strict=True):
            if self._ahead.is_timed(stage):
                total += self.count_plan(restrict(stage, live), ())
        return total

    def count_plan(self, plan: Plan, actions: Sequence[int]) -> Workload:
        """Count the calls that a row of a plan runs."""
        calls = self._regions.calls(plan, actions)
        kernels, regions = Counter[Kernel](), Counter[str]()
        for call in reversed(calls):  # times are summed in this order
            found, key = self._count_graph(call.variant.gm)
            kernels.update(found)
            regions[key] += 1
        inputs = sum(len(call.inputs) + len(call.static) for call in calls)
        return Workload(kernels, len(calls), inputs, regions=regions)

    def _count_ahead(self, k: int, stream: StreamTable, liveness: Liveness) -> Workload:
        """A stage that is evaluated for all steps at once."""
        live = liveness.of_table()[k]
        gm, _, _ = narrow_stage(self.plan.stages[k].gm, live, self._disable)
        kernels = find_kernels(gm.graph, self._modules, fused=False)
        return Workload(kernels).scaled(stream.num_steps)

    def _count_stage(self, k: int, stream: StreamTable, liveness: Liveness) -> Workload:
        """A stage that is evaluated at each step that reads it, or once."""
        stage, live = self.plan.stages[k], liveness.of_table()[k]
        if not self._ahead.is_timed(stage):
            return self.count_plan(restrict(stage, live), ())
        total = Workload()
        for row, steps in stream.rows():
            mine = self.count_plan(restrict(stage, liveness.needs(row).step[k]), ())
            for _ in steps:
                total += mine
        return total

    def _count_graph(self, gm: fx.GraphModule) -> tuple[Counter[Kernel], str]:
        """The kernels of a specialised region, and its key."""
        if gm not in self._counts:
            is_fused, lowered = self._ahead.is_compiled, fork(gm)
            if is_fused:
                passes = select_passes(COMPILED, self._disable)
                run_passes(lowered, passes, graph="region", observe=None)
            kernels = find_kernels(lowered.graph, self._modules, fused=is_fused)
            self._counts[gm] = kernels, region_key(structure_of(gm))
        return self._counts[gm]


def count_everything(denoiser: Denoiser, schedules: Sequence[Schedule] = ()) -> Workload:
    """Count all kernels and regions that any step of a denoiser or of other schedules runs.

    Each is counted as often as one step has it: this is what a profile is measured with.

    Raises:
        DqarError: Nothing has been captured yet.
        ScheduleError: A schedule does not fit the sites.
    """
    counter, total = WorkloadCounter(denoiser.program), Workload()
    others = [with_schedule(denoiser, schedule) for schedule in schedules]
    for each in (denoiser, *others):
        for stream in streams_of(each):
            total |= counter.count_conditioning(stream)
    for row in list_rows(denoiser, schedules):
        total |= counter.count_row(row)
    return total
