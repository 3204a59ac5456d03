"""A program: one captured input signature, ready to run any step of any stream.

A step of a stream is: take the table's row, bind it (once per distinct row), evaluate those
conditioning stages whose inputs changed, walk the bound calls.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.capture.adapters import Bound
from dqar_fx.capture.inputs import Roles
from dqar_fx.capture.scopes import without_autocast
from dqar_fx.conditioning.conditioning import AheadPolicy, Conditioning
from dqar_fx.conditioning.drop import tabulate_labels
from dqar_fx.conditioning.memo import Memo
from dqar_fx.errors import StepError
from dqar_fx.passes import TensorSpec, specialise
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.passes.support.runner import fork
from dqar_fx.passes.support.tracing_lock import TRACING
from dqar_fx.plan.liveness import Liveness
from dqar_fx.plan.plan import Variant, execute
from dqar_fx.plan.slots import Slots, plan_slots, share_slots
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.cells import read_rows
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.steps.position import Stretch
from dqar_fx.steps.stream_key import session_of

from .fitting import shape_of_table, table_before_run
from .forecast_noise import ForecastNoise
from .recently_used import RecentlyUsed
from .stream import Binder, PreparedStep, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import fx, nn

    from dqar_fx.capture.adapters import ModelInputs
    from dqar_fx.capture.capture import Capture
    from dqar_fx.capture.offloaded import OffloadedTensor
    from dqar_fx.conditioning.fixed import ConditioningTable
    from dqar_fx.conditioning.release import Residence
    from dqar_fx.passes.support.sizes import Sizes
    from dqar_fx.plan.liveness import Live
    from dqar_fx.plan.plan import CallObserver, Stage
    from dqar_fx.plan.slot_state import Actions, ForecastWeights
    from dqar_fx.plan.slots import SlotKey
    from dqar_fx.schedule.run import RunShape
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position
    from dqar_fx.steps.stream_key import StreamKey

    from .explanation import Explanation
    from .graphs import Graphs
    from .lowering import Lowering


REPLAYING = RLock()
"""Held while a step runs whose regions are replayed."""
MAX_LENGTHS = 4
"""Lengths of runs, or kinds of them, whose tables are kept for one input signature."""
MAX_PREPARED = 4096
"""Steps of a stream that are prepared at a time; a trajectory takes one for each step."""


class Program:
    """One input signature of a denoiser, compiled to a plan.

    Args:
        conditioning: When to evaluate it: ``"auto"``, ``"step"`` or ``"trajectory"``.
        observe: Gives, for each variant that is bound, what is called in the place of its
            function, such as a clock around it; None to call the function itself.
        find_weight: Finds a parameter that is there for the time of a call only; None where
            all stay.

    Attributes:
        schedule: What the table is made of; None if nothing else can be.
        is_refitted: Whether runs of other lengths have tables of their own.
        graphs: The model as graphs, and the step's plan.
        roles: Which input plays which part.
        table: What every site does at every step.
        slot_specs: The slots of one stream.
        slot_owners: Per slot, the one whose buffer it uses.
        history: How many outputs of a site they keep, as many as its graphs have inputs for.
        explanation: What was found and done.
        streams: The streams that have been called.
        binder: Binds rows and stages to what they read and write.
        ahead: When conditioning is evaluated for a whole trajectory.
        liveness: What of the conditioning is read.
        reference: Itself, weakly.
        beside: Programs of the same inputs for other streams.
    """

    def __init__(
        self,
        *,
        graphs: Graphs,
        table: BranchTable,
        lowering: Lowering,
        explanation: Explanation,
        conditioning: str = "auto",
        observe: CallObserver | None = None,
        schedule: Schedule | None = None,
        find_weight: Callable[[str], OffloadedTensor] | None = None,
    ) -> None:
        self.schedule = schedule
        self.is_refitted = schedule is not None and (
            schedule.waits_for_run or schedule.resample
        )
        self._fitted: RecentlyUsed[RunShape, Program] = RecentlyUsed()
        self.beside: list[Program] = []
        self.graphs = graphs
        self.table = table
        self.plan = plan = graphs.plan
        slots = graphs.slots
        self.slot_specs = plan_slots(slots, table)
        self.slot_owners = share_slots(self.slot_specs, table)
        self.history = 1 + max((place for _, _, place, _ in slots), default=0)
        self.lowering = lowering
        self.explanation = explanation
        self.binder = Binder(
            plan, lowering, graphs.model, self.slot_specs, observe, find_weight
        )
        self.streams: dict[StreamKey, Stream] = {}
        self.roles = Roles.of(graphs.model)
        self.ahead = AheadPolicy(
            conditioning,
            is_compiled=lowering.backend.is_compiled,
            timestep=self.roles.timestep,
        )
        self._conditioning = Conditioning(
            plan.stages,
            ahead=self.ahead,
            copy=lowering.backend.replays,
            bind=self.binder.bind_stage,
            narrow=lowering.narrowed,
            fill=self.binder.fill,
            shares=observe is None,
        )
        self.liveness = Liveness(
            plan, table.rows, lowering.unlowered_of, is_compiled=self.ahead.is_compiled
        )
        self.reference = weakref.ref(self)
        self._noise = ForecastNoise(graphs.cache)
        self._bound = Bound.to(graphs.model)
        self._version = self._bound.version
        self._shared = {n for stage in plan.stages for n in (*stage.outputs, *stage.inputs)}
        devices = {spec.device.type for spec in slots.values()}
        self._is_on_host = devices <= {"cpu"}

    @property
    def captured(self) -> Capture:
        """The model as a graph, untouched."""
        return self.graphs.captured

    @property
    def guarded(self) -> fx.GraphModule:
        """The same with conditioning hoisted and every site guarded."""
        return self.graphs.guarded

    def with_schedule(self, schedule: Schedule) -> Program:
        """Another program over the same graphs and lowered regions, for another schedule.

        Raises:
            ScheduleError: The schedule does not fit the sites.
        """
        sites, around = self.table.sites, self.table.around
        table = table_before_run(schedule, sites, around, self.graphs.cache)
        return self.with_table(table, schedule)

    def for_run(self, shape: RunShape | None) -> Program:
        """The program whose table is made for a run: itself, or one beside it.

        Args:
            shape: What the run says of itself; None where it does not say how long it is.

        Raises:
            StepError: The table needs to know how long the run is.
            ScheduleError: The schedule is not for such a run.
        """
        fixed = None
        if self.schedule is not None and self.is_refitted:
            fixed = shape_of_table(self.schedule, shape)
        if fixed is None:
            return self
        return self._fitted.find_or_make(fixed, lambda: self._fit(fixed), MAX_LENGTHS)

    @property
    def fitted(self) -> tuple[Program, ...]:
        """The programs beside this one that were made for runs."""
        return tuple(self._fitted)

    def _fit(self, shape: RunShape) -> Program:
        """Another program whose table is made for a run."""
        assert self.schedule is not None, "it has one that waits for runs"
        calls, noise = shape.calls, shape.noise or None
        return self.with_schedule(
            self.schedule.for_run(shape.num_rows, calls=calls, noise=noise)
        )

    def with_table(self, table: BranchTable, schedule: Schedule | None = None) -> Program:
        """Another program over the same graphs and lowered regions, with slots of its own."""
        return self._beside(self.graphs, table, self.lowering, schedule)

    def at(self, sizes: Sizes, leaves: Sequence[Any]) -> Program:
        """Another program for other sizes of the inputs: the same graphs, at these sizes."""
        graphs, lowering = self.graphs.at(sizes, leaves), self.lowering.anew()
        other = self._beside(graphs, self.table, lowering, self.schedule)
        if lowering.options.dynamic:
            other.share_regions(sizes)
        return other

    def share_regions(self, sizes: Sizes) -> None:
        """Let what is compiled serve all sizes; it is at these itself."""
        self.lowering.share = self.graphs.free.share(sizes)

    def _beside(
        self,
        graphs: Graphs,
        table: BranchTable,
        lowering: Lowering,
        schedule: Schedule | None,
    ) -> Program:
        other = self._make(
            graphs=graphs,
            table=table,
            lowering=lowering,
            explanation=graphs.explain(self.explanation),
            conditioning=self.ahead.way,
            schedule=schedule,
        )
        if self._conditioning.residence is not None:
            other.attach(self._conditioning.residence)
        return other

    def _make(self, **given: Any) -> Program:
        """Another program of its kind."""
        return Program(**given)

    @property
    def is_outdated(self) -> bool:
        """Whether what it captured is not what a call of its signature did."""
        return False

    def require_whole(self, what: str) -> None:
        """Raise for what needs a graph of the whole denoiser, where there is none."""

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """What the denoiser returns."""
        outputs = graph_outputs(self.captured.gm.graph)
        return tuple(TensorSpec.of(node.meta["val"]) for node in outputs)

    @property
    def inputs(self) -> fx.GraphModule:
        """A graph whose placeholders are the denoiser's inputs."""
        return self.captured.gm

    def attach(self, residence: Residence) -> None:
        """Let the conditioning's parameters be where ``residence`` puts them."""
        self._conditioning.residence = residence
        residence.add_program(self)

    # ---- weights -------------------------------------------------------------------------

    def follows(self, stamp: object) -> bool:
        """Whether its weights and scales are those that a model had at a stamp."""
        return self._bound.stamp is stamp and self._bound.version == self._version

    def follow(self, given: ModelInputs, stamp: object) -> bool:
        """Take weights and scales of a model, as it is at a stamp.

        Returns:
            Whether tensors are others than those that were bound.

        Raises:
            ValueError: Another layout of a tensor is needed.
        """
        if self._bound.stamp is not stamp:
            self._bound.take(given, stamp, *self._modules)
        if self._bound.version == self._version:
            return False
        self.bind_anew()
        return True

    def let_go(self, given: ModelInputs) -> None:
        """Hold no weight of a model that is moved elsewhere, and no stream."""
        self._bound.let_go(given, *self._modules)
        self.bind_anew()
        self.cool()

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        """What has weights and scales of its own."""
        return (self.graphs.model,)

    def bind_anew(self) -> None:
        """Bind rows and stages anew, to the tensors that the graph has now."""
        for program in (self, *self.fitted, *self.beside):
            program._version = self._bound.version
            program._conditioning.forget()
            for stream in list(program.streams.values()):
                stream.memo = Memo()
                stream.rows.clear()
                stream.prepared.clear()

    def forget_conditioning(self) -> None:
        """Hold no parameter of the conditioning in bound calls."""
        self._conditioning.forget()

    def fix_conditioning(
        self, leaf: int, labels: Sequence[int], timesteps: torch.Tensor
    ) -> ConditioningTable:
        """Tabulate the conditioning of labels at timesteps; from now on it has no other.

        Raises:
            OptionError: What a sample gets depends on the others of its batch.
        """
        found = tabulate_labels(self, self._conditioning, leaf, labels, timesteps)
        self.reset()
        self._conditioning.fixed = found
        return found

    @property
    def fixed(self) -> ConditioningTable | None:
        """What `fix_conditioning` made; None if the conditioning may be evaluated."""
        return self._conditioning.fixed

    def explain(self, step: int | None = None) -> Explanation:
        """What was found and done, passes on the regions lowered so far included.

        Args:
            step: Whose actions to explain; None for all.

        Raises:
            StepError: The table has no such step.
        """
        reports = (*self.explanation.reports, *self.lowering.reports)
        if step is not None:
            self._refuse_step(step)
        steps = range(self.table.num_steps) if step is None else (step,)
        return replace(self.explanation, reports=reports, rows=read_rows(self.table, steps))

    @property
    def cache_bytes(self) -> int:
        """Slot bytes of one stream, known before anything runs."""
        return sum(spec.nbytes for spec in self.buffer_specs.values())

    @property
    def buffer_specs(self) -> dict[SlotKey, TensorSpec]:
        """The buffers of one stream; slots whose lives do not overlap share one."""
        return {owner: self.slot_specs[owner] for owner in self.slot_owners.values()}

    @property
    def table_bytes(self) -> int:
        """Bytes of one stream's conditioning for all steps of the table.

        0 where it is evaluated step by step; else what is kept once timesteps are known, of
        what any step of the table reads.
        """
        num_steps = self.table.num_steps
        return sum(
            num_steps * stage.count_bytes(live)
            for stage, live in self._stages_read()
            if self.ahead.tabulates(stage, live, num_steps)
        )

    @property
    def constant_bytes(self) -> int:
        """Bytes of one stream's conditioning that does not read the timestep."""
        return sum(
            stage.count_bytes(live)
            for stage, live in self._stages_read()
            if not self.ahead.is_timed(stage)
        )

    def _stages_read(self) -> Iterator[tuple[Stage, Live]]:
        """Each stage of the conditioning, and which of its outputs any step reads."""
        return zip(self.plan.stages, self.liveness.of_table(), strict=True)

    @property
    def variants(self) -> dict[str, Variant]:
        """The regions lowered so far, by structure."""
        return self.lowering.variants

    def reset(self) -> None:
        """Forget all streams, their slots and their conditioning."""
        for stream in list(self.streams.values()):
            stream.report_flags(self.table.sites)
        self.streams.clear()
        self._conditioning.forget()

    def cool(self) -> None:
        """Forget the streams also of programs that were made for runs, or to run beside."""
        for program in (self, *self.fitted, *self.beside):
            program.reset()

    def forget_session(self, number: int | None) -> None:
        """Forget the streams of a session; None for what has none."""
        for key in [key for key in list(self.streams) if session_of(key) == number]:
            self.streams.pop(key).report_flags(self.table.sites)

    def row_graph(self, step: int) -> fx.GraphModule:
        """The step's whole graph at a step of the table.

        Raises:
            StepError: The table has no such step.
        """
        self._refuse_step(step)
        gm = fork(self.guarded)
        specialise(gm, self.table.row(step))
        gm.recompile()
        return gm

    def _refuse_step(self, step: int) -> None:
        """Raise for a step that the table does not have."""
        if not 0 <= step < self.table.num_steps:
            raise StepError(f"no step {step}: the branch table has {self.table.num_steps}")

    def run(
        self, leaves: Sequence[Any], position: Position, weights: ForecastWeights | None = None
    ) -> list[torch.Tensor]:
        """One step of one stream; the flat outputs of the denoiser.

        Its forecasts have the given weights, per site, or else the table's.
        """
        stream = self._stream(position.stream)
        slots = stream.slots
        if not slots.holds(position.trajectory):
            # what was kept is another trajectory's, and weights may have been written
            stream.report_flags(self.table.sites)
            self.lowering.packed_weights.refresh()
            if self._conditioning.has_other_sources():
                for each in list(self.streams.values()):
                    each.memo = Memo()
            slots.enter(position.trajectory)
        self._carry_over(slots, position)
        if position.computes:
            step = self._prepare_alone(stream)
        else:
            step = self._prepare(stream, position.step, weights)
        if weights is None:
            self._noise.look(self.table, slots, step.actions, position.step)
        cast_on = self.graphs.cast_on
        with without_autocast(cast_on) if cast_on else nullcontext():
            outputs = self._execute(stream, step, leaves, position)
        self._note(stream, step, position)
        if position.step == self.table.num_steps - 1:
            self._noise.report(self.table)
        return outputs

    def _note(self, stream: Stream, step: PreparedStep, position: Position) -> None:
        """Log a step that has run."""
        del stream
        position.note(self, step.actions, step.num_cold)

    def _carry_over(self, slots: Slots, position: Position) -> None:
        """Take over what another program has kept of a stream, which this one runs now.

        Programs of other dtypes of the latent or the timestep may keep the same outputs.
        """
        stretch = position.trajectory
        if not isinstance(stretch, Stretch):
            return
        before, stretch.program = stretch.program, self.reference
        if before is None or before is self.reference:
            return
        other = before()
        stream = None if other is None else other.streams.get(position.stream)
        if other is None or stream is None or other.table != self.table:
            return
        if stream.slots.holds(stretch) and stream.slots.specs == slots.specs:
            slots.take_over(stream.slots)

    def _execute(
        self, stream: Stream, step: PreparedStep, leaves: Sequence[Any], position: Position
    ) -> list[torch.Tensor]:
        """Run a step that is worked out; its flat outputs.

        Recorded CUDA graphs are one thread's at a time: torch locks their recording, but
        neither their replay nor the mark of a step.
        """
        if not self.lowering.backend.replays:
            return self._run_calls(stream, step, leaves, position)
        with REPLAYING:
            return self._run_calls(stream, step, leaves, position)

    def _run_calls(
        self, stream: Stream, step: PreparedStep, leaves: Sequence[Any], position: Position
    ) -> list[torch.Tensor]:
        """Evaluate the conditioning of a step, and walk its calls."""
        slots, values = stream.slots, self.plan.place_inputs(leaves)
        if self.lowering.backend.replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch leaves it so
        try:
            self._conditioning.evaluate(stream.memo, leaves, values, position, step.needs)
            execute(step.calls, values)
        except BaseException:
            slots.forget()  # some slots may be written and others not
            stream.memo = Memo()
            raise
        slots.slot_state = step.after
        if step.is_checked:
            stream.report_flags(self.table.sites)
        # what is kept for a later step is copied before the caller may write to it
        copied = self.plan.outputs if self.lowering.backend.replays else self._shared
        return [
            values[number].clone() if number in copied else values[number]
            for number in self.plan.outputs
        ]

    def rehearse(
        self, leaves: Sequence[Any], position: Position, weights: ForecastWeights
    ) -> list[torch.Tensor]:
        """A step with other weights for its forecasts, which is not the last word.

        Earlier steps of its trajectory have run. What counts as kept afterwards is what was
        kept before: the same step is to be run again, and what it stores is written anew then.
        """
        slots = self._stream(position.stream).slots
        before = slots.slot_state
        outputs = self.run(leaves, position, weights)
        slots.slot_state = before
        return outputs

    def can_rehearse(self, position: Position) -> bool:
        """Whether a stream has kept all that a step reads."""
        slots = self._stream(position.stream).slots
        if not slots.holds(position.trajectory):
            return False
        return slots.slot_state.actions_for(self.table, position.step)[1] == 0

    def weigh(self, position: Position) -> ForecastWeights:
        """The weights that a step's forecasts have by the table."""
        slot_state, step = self._stream(position.stream).slots.slot_state, position.step
        return slot_state.weigh(self.table, self.table.actions[step], step)

    def _stream(self, key: StreamKey) -> Stream:
        if key not in self.streams:
            num_sites = len(self.table.sites)
            slots = Slots(self.slot_specs, num_sites, self.history, self.slot_owners)
            self.streams[key] = Stream(slots)
        return self.streams[key]

    def _prepare(
        self, stream: Stream, step: int, weights: ForecastWeights | None = None
    ) -> PreparedStep:
        """Work a step out, once for what is kept; anew for given weights of forecasts."""
        state = stream.slots.slot_state
        known = stream.prepared.get((state, step))
        if known is not None and weights is None:
            return known
        with TRACING:
            return self._work_out(stream, step, weights)

    def _work_out(
        self, stream: Stream, step: int, weights: ForecastWeights | None
    ) -> PreparedStep:
        """Lower and bind what a step runs."""
        state = stream.slots.slot_state
        actions, num_cold = state.actions_for(self.table, step)
        if weights is not None:
            calls = self.binder.bind_row(stream.slots, actions, weights)
        else:
            weighed = state.weigh(self.table, actions, step)
            row = (actions.tobytes(), state.places(actions), weighed)
            if row not in stream.rows:
                stream.rows[row] = self.binder.bind_row(stream.slots, actions, weighed)
            calls = stream.rows[row]
        made = PreparedStep(
            actions=actions,
            calls=calls,
            after=state.after(actions, step),
            needs=self.liveness.needs(actions.tolist()),
            num_cold=num_cold,
            is_checked=self._is_checked(actions, step),
        )
        if weights is None:
            if len(stream.prepared) >= MAX_PREPARED:
                stream.prepared.clear()
            stream.prepared[state, step] = made
        return made

    def _prepare_alone(self, stream: Stream) -> PreparedStep:
        """A step that computes everything, and neither reads nor keeps anything."""
        actions = np.zeros(len(self.table.sites), np.int8)
        key = ("alone", actions.tobytes())
        with TRACING:
            if key not in stream.rows:
                unweighed: ForecastWeights = ((),) * len(actions) if self.history > 1 else ()
                stream.rows[key] = self.binder.bind_row(stream.slots, actions, unweighed)
            needs = self.liveness.needs(actions.tolist())
        return PreparedStep(
            actions=actions,
            calls=stream.rows[key],
            after=stream.slots.slot_state,
            needs=needs,
            num_cold=0,
            is_checked=False,
        )

    def _is_checked(self, actions: Sequence[int] | Actions, step: int) -> bool:
        """Whether to look for NaN and infinity after a step: elsewhere, to ask is to wait."""
        is_last = step == self.table.num_steps - 1
        return is_last or (self._is_on_host and Action.STORE in actions)
