"""A program whose steps are the model's own forward, with its captured blocks in it.

It is a program as any other over a graph that holds all blocks and nothing between them: a
row is bound once, slots and their state are the same. But a step does not walk the bound calls
from the first to the last: the model's forward runs, and where it calls a block, the calls of
this block's segment run, on what the block is given.

A block that is called otherwise than when it was captured runs as itself in that step: nothing
of it is kept or reused, and the log says so. The next call is captured anew.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.block_calls import casts_on
from dqar_fx.capture.inputs import Roles, find_devices
from dqar_fx.capture.patterns import fill, fits, pattern_of, spell, tensors_of
from dqar_fx.capture.scopes import without_autocast
from dqar_fx.conditioning.memo import Memo
from dqar_fx.errors import DqarError, OptionError
from dqar_fx.notices import Once
from dqar_fx.passes import TensorSpec
from dqar_fx.plan.plan import BoundCall, execute
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.table import READING
from dqar_fx.steps.reasons import Reason

from .program import Program
from .stream import Binder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx, nn

    from dqar_fx.capture.segments import Segment, SegmentCapture
    from dqar_fx.plan.plan import Plan
    from dqar_fx.plan.slot_state import Actions, ForecastWeights
    from dqar_fx.plan.slots import Slots
    from dqar_fx.steps.position import Position

    from .host import Host
    from .stream import PreparedStep, Stream


@dataclass(frozen=True)
class PlannedSegment:
    """A segment in the plan.

    Attributes:
        segment: The block's call.
        number: Its place among the segments.
        inputs: Numbers of the tensors that it reads.
        outputs: Numbers of those that it gives.
        columns: Columns of its sites in the branch table.
        stages: Places of the stages of conditioning that it reads.
        devices: Types of the devices that its inputs are on, as far as autocast knows them.
    """

    segment: Segment
    number: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    columns: tuple[int, ...]
    stages: tuple[int, ...]
    devices: tuple[str, ...]


class RowCalls(list[BoundCall]):
    """The bound calls of a row.

    Attributes:
        by_segment: The same, apart by segment.
    """

    by_segment: list[list[BoundCall]]


@dataclass(frozen=True)
class SegmentBinder(Binder):
    """A binder that tells the calls of segments apart.

    Attributes:
        owners: Per call of the plan, the segment that it is of.
    """

    owners: tuple[int, ...] = ()

    def bind_row(self, slots: Slots, actions: Actions, weights: ForecastWeights) -> RowCalls:
        """The calls of a row of the step's plan."""
        calls = RowCalls(super().bind_row(slots, actions, weights))
        calls.by_segment = [[] for _ in range(1 + max(self.owners))]
        for call in calls:
            calls.by_segment[self.owners[call.number]].append(call)
        return calls


class BlockProgram(Program):
    """One input signature of a denoiser whose blocks are captured.

    Args:
        host: Runs the model around them.
        blocks: What was captured.
        inputs: A graph whose placeholders are the denoiser's inputs.
        program: What any program is given.
    """

    def __init__(
        self, *, host: Host, blocks: SegmentCapture, inputs: fx.GraphModule, **program: Any
    ) -> None:
        comes = host.find_weight if host.offload else None
        super().__init__(**{**program, "conditioning": "step"}, find_weight=comes)
        self._host, self._blocks, self._inputs = host, blocks, inputs
        self._once = Once()
        self.kept = {number for stage in self.plan.stages for number in stage.outputs}
        self.roles = Roles.of(inputs)
        owners = find_owners(self.plan, blocks.segments)
        self.binder = SegmentBinder(
            self.plan,
            self.lowering,
            self.captured.gm,
            self.slot_specs,
            self.binder.observe,
            comes,
            owners,
        )
        planned = plan_segments(self.plan, blocks.segments, owners)
        self.segments = {each.segment.key: each for each in planned}

    def _make(self, **given: Any) -> Program:
        return BlockProgram(host=self._host, blocks=self._blocks, inputs=self._inputs, **given)

    @property
    def is_outdated(self) -> bool:
        """Whether a block was called otherwise than when it was captured."""
        return self._host.is_outdated

    @property
    def inputs(self) -> fx.GraphModule:
        """A graph whose placeholders are the denoiser's inputs."""
        return self._inputs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """What the denoiser returns."""
        return tensors_of(self._blocks.result)

    def require_whole(self, what: str) -> None:
        """Raise: there is no graph of the whole denoiser.

        Raises:
            OptionError: Always.
        """
        raise OptionError(
            f"{what} needs one graph of the whole denoiser, but what was captured is "
            f"{self.explanation.said_tier}"
        )

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        if self._host.offload:  # weights are read from the model when a block is called
            return ()
        return (self._host.model, *super()._modules)

    def _run_calls(
        self, stream: Stream, step: PreparedStep, leaves: Sequence[Any], position: Position
    ) -> list[torch.Tensor]:
        """Run the model, with the segments of a step for its blocks."""
        slots = stream.slots
        running = RunningBlocks(self, stream.memo, step, position)
        args, kwargs = pytree.tree_unflatten(leaves, self.captured.in_spec)
        if self.lowering.backend.replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch leaves it so
        try:
            result = self._host.run(running, args, kwargs)
            outputs, spec = pytree.tree_flatten(result)
            self._refuse_result(spec)
        except BaseException:
            slots.forget()  # some slots may be written and others not
            stream.memo = Memo()
            raise
        stream.missed = self._find_missed(running)
        if not stream.missed or position.computes:
            slots.slot_state = step.after
        else:
            actions = without(step.actions, stream.missed)
            slots.slot_state = slots.slot_state.after(actions, position.step)
        if step.is_checked:
            stream.report_flags(self.table.sites)
        return outputs

    def _refuse_result(self, spec: pytree.TreeSpec) -> None:
        """Raise for a result of another structure than the first one's."""
        if spec != self.captured.out_spec:
            raise DqarError(
                f"the forward returned {spec}, but {self.captured.out_spec} when it was "
                "captured for the same inputs. Expected one structure of results for one "
                "structure of inputs"
            )

    def _find_missed(self, running: RunningBlocks) -> list[int]:
        """Columns of segments that did not run; warns if there are any, or blocks beside."""
        missed = [each for key, each in self.segments.items() if key not in running.ran]
        if running.others or missed:
            self._host.is_outdated = True
            what = [*running.others, *(f"{m.segment.path} was not called" for m in missed)]
            self._once.warn(
                f"blocks are not called as when they were captured: {what[0]}"
                f"{f' (and {len(what) - 1} more)' if len(what) > 1 else ''}. In such a step "
                "they run as themselves, nothing of them is kept or reused, and the next "
                "call is captured anew, a few times. Expected the same blocks, called alike, "
                "for inputs of the same shapes",
                key="missed",
            )
        return [column for each in missed for column in each.columns]

    def _note(self, stream: Stream, step: PreparedStep, position: Position) -> None:
        missed, stream.missed = stream.missed, []
        if not missed:
            super()._note(stream, step, position)
            return
        num_read = sum(step.actions[column] in READING for column in missed)
        position.reason = OTHER_CALLS
        position.note(self, without(step.actions, missed), step.num_cold + num_read)


OTHER_CALLS = Reason(
    "blocks", "its blocks were not called as when they were captured, and ran as themselves"
)


def without(actions: Actions, columns: Sequence[int]) -> Actions:
    """Actions that compute at some sites, and keep nothing there."""
    changed = np.array(actions, np.int8)
    changed[list(columns)] = Action.COMPUTE
    return changed


class RunningBlocks:
    """The blocks of one step of a program.

    Args:
        program: The program.
        memo: What the stream knows of the blocks' conditioning.
        step: The step, worked out.
        position: Which step of which stream it is.

    Attributes:
        ran: Keys of the segments that ran.
        others: What was called otherwise, in words.
    """

    def __init__(
        self, program: BlockProgram, memo: Memo, step: PreparedStep, position: Position
    ) -> None:
        assert isinstance(step.calls, RowCalls)
        self.ran: set[tuple[str, int]] = set()
        self.others: list[str] = []
        self._segments, self._calls = program.segments, step.calls.by_segment
        self._conditioning, self._memo = program._conditioning, memo
        self._needs, self._position = step.needs, position
        self._settles, self._left = program._blocks.settles, program._blocks.left
        self._replays, self._kept = program.lowering.backend.replays, program.kept
        self._values: list[Any] = [None] * program.plan.size
        self._turns = Counter[str]()

    def call(
        self,
        path: str,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the segment of a block; its own forward where there is none for such a call."""
        key = path, self._turns[path]
        self._turns[path] += 1
        planned, given = self._segments.get(key), list[torch.Tensor]()
        if planned is None or not (
            fits((args, kwargs), planned.segment.given, given, settles=self._settles)
            and casts_on(planned.devices) == planned.segment.casts
        ):
            if path not in self._left:
                found = spell(pattern_of((args, kwargs)))
                self.others.append(f"{path} was called with {found}")
            return own(*args, **kwargs)
        self.ran.add(key)
        return self._run(planned, given)

    def _run(self, planned: PlannedSegment, given: Sequence[torch.Tensor]) -> Any:
        """Run a segment; what its block returns."""
        values = self._values
        for number, tensor in zip(planned.inputs, given, strict=True):
            values[number] = tensor
        casts = planned.segment.casts  # are in the graph
        with without_autocast(planned.devices) if casts else nullcontext():
            if planned.stages:  # inputs are numbered first: leaves are found by their numbers
                self._conditioning.evaluate(
                    self._memo, values, values, self._position, self._needs, planned.stages
                )
            execute(self._calls[planned.number], values)
        # what is kept for a later step is copied before the forward may write to it
        copied = planned.outputs if self._replays else self._kept
        outputs = [
            values[number].clone() if number in copied else values[number]
            for number in planned.outputs
        ]
        for number in (*planned.inputs, *planned.outputs):
            values[number] = None
        return fill(planned.segment.gives, iter(outputs))


def plan_segments(
    plan: Plan, segments: Sequence[Segment], owners: Sequence[int]
) -> list[PlannedSegment]:
    """Find each segment's tensors, sites and conditioning in a plan."""
    inputs, outputs = iter(plan.inputs), iter(plan.outputs)
    planned = []
    for number, segment in enumerate(segments):
        given = [next(inputs) for _ in tensors_of(segment.given)]
        gives = [next(outputs) for _ in tensors_of(segment.gives)]
        mine = [c for c, owner in zip(plan.calls, owners, strict=True) if owner == number]
        stages = [k for k, s in enumerate(plan.stages) if s.leaves.issubset(given)]
        planned.append(
            PlannedSegment(
                segment,
                number,
                tuple(given),
                tuple(gives),
                tuple(column for call in mine for column in call.columns),
                tuple(stages),
                find_devices(tensors_of(segment.given)),
            )
        )
    return planned


def find_owners(plan: Plan, segments: Sequence[Segment]) -> tuple[int, ...]:
    """Per call of a plan, the segment that it is of: the one whose outputs need it.

    A call that no output needs is of the segment whose inputs it reads.
    """
    inputs, outputs = iter(plan.inputs), iter(plan.outputs)
    giver: dict[int, int] = {}
    reader: dict[int, int] = {}
    for number, segment in enumerate(segments):
        giver |= {next(inputs): number for _ in tensors_of(segment.given)}
        reader |= {next(outputs): number for _ in tensors_of(segment.gives)}
    for call in reversed(plan.calls):
        known = [reader[n] for n in call.outputs if n in reader]
        reader |= {n: known[0] for n in call.inputs if known and n not in reader}
    owners: list[int] = []
    for call in plan.calls:
        known = [reader[n] for n in call.outputs if n in reader]
        known += [giver[n] for n in call.inputs if n in giver]
        owners.append(known[0] if known else (owners or [0])[-1])
        giver |= {n: owners[-1] for n in call.outputs if n is not None}
    return tuple(owners)
