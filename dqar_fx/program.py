"""A program: one captured input signature, ready to run any step of any stream.

A step of a stream is: take the table's row, bind it (once per distinct row), evaluate those
conditioning stages whose inputs changed, walk the bound calls.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.passes import Action, specialise

from .plan import BoundCall, Plan, Variant, bind, execute
from .runner import fork
from .slots import SlotKey, Slots, plan_slots, slots_of
from .steps import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import fx

    from .capture import Capture
    from .explanation import Explanation
    from .lowering import Lowering
    from .steps import Position
    from .table import BranchTable


@dataclass
class Stream:
    """What one stream keeps between its steps.

    Attributes:
        slots: The kept outputs.
        stages: Per stage, its outputs when it last ran.
        seen: Per denoiser input, the tensor that it was then.
        rows: Bound calls by actions.
    """

    slots: Slots
    stages: list[list[torch.Tensor]]
    seen: dict[int, Seen] = field(default_factory=dict)
    rows: dict[bytes, list[BoundCall]] = field(default_factory=dict)


class Program:
    """One input signature of a denoiser, compiled to a plan.

    Attributes:
        captured: The model as a graph, untouched.
        guarded: The same with conditioning hoisted and every site guarded.
        table: What every site does at every step.
        plan: The step's stages and regions.
        slot_specs: The buffers of one stream.
        explanation: What was found and done.
        streams: The streams that have been called.
    """

    def __init__(
        self,
        *,
        captured: Capture,
        guarded: fx.GraphModule,
        table: BranchTable,
        plan: Plan,
        lowering: Lowering,
        explanation: Explanation,
    ) -> None:
        self.captured = captured
        self.guarded = guarded
        self.table = table
        self.plan = plan
        self.slot_specs = plan_slots(slots_of(guarded), table)
        self.lowering = lowering
        self.explanation = explanation
        self.streams: dict[tuple[str | None, int], Stream] = {}
        self._tensor_of = tensor_finder(captured.gm)
        self._stage_calls: list[list[BoundCall]] | None = None
        self._warned = False

    def with_table(self, table: BranchTable) -> Program:
        """Another program over the same graphs and lowered regions, with slots of its own."""
        return Program(
            captured=self.captured,
            guarded=self.guarded,
            table=table,
            plan=self.plan,
            lowering=self.lowering,
            explanation=self.explanation,
        )

    @property
    def cache_bytes(self) -> int:
        """Slot bytes of one stream, known before anything runs."""
        return sum(spec.nbytes for spec in self.slot_specs.values())

    @property
    def variants(self) -> dict[str, Variant]:
        """The regions lowered so far, by structure."""
        return self.lowering.variants

    def reset(self) -> None:
        """Forget all streams, their slots and their conditioning."""
        self.streams.clear()

    def row_graph(self, step: int) -> fx.GraphModule:
        """The step's whole graph at a step of the table."""
        gm = fork(self.guarded)
        specialise(gm, self.table.row(step))
        gm.recompile()
        return gm

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """One step of one stream; the flat outputs of the denoiser."""
        stream = self._stream(position.stream)
        slots = stream.slots
        slots.enter(position.trajectory)
        actions, cold = slots.actions_for(self.table, position.step)
        if cold and not self._warned:
            self._warn_cold(cold, position)
        calls = self._bound_row(stream, actions)
        values: list[Any] = [None] * self.plan.size
        for number, leaf in zip(self.plan.inputs, leaves, strict=True):
            values[number] = leaf
        try:
            self._run_stages(stream, leaves, values)
            execute(calls, values)
        except BaseException:
            slots.forget()  # some slots may be written and others not
            stream.seen.clear()
            raise
        slots.note(actions, position.step)
        return [values[number] for number in self.plan.outputs]

    def _stream(self, key: tuple[str | None, int]) -> Stream:
        if key not in self.streams:
            slots = Slots(self.slot_specs, len(self.table.sites))
            self.streams[key] = Stream(slots, [[] for _ in self.plan.stages])
        return self.streams[key]

    def _bound_row(self, stream: Stream, actions: NDArray[np.int8]) -> list[BoundCall]:
        key = actions.tobytes()
        if key not in stream.rows:
            stream.rows[key] = self._bind(self.plan, actions, stream.slots)
        return stream.rows[key]

    def _bind(
        self, plan: Plan, actions: Sequence[int] | NDArray[np.int8], slots: Slots | None
    ) -> list[BoundCall]:
        def fill(static: str | SlotKey | None) -> Any:
            if isinstance(static, tuple):
                assert slots is not None
                return slots.buffers[static]
            assert static is not None, "actions are resolved before binding"
            return self._tensor_of(static)

        def specialised(
            region: str, mine: tuple[Action, ...], live: tuple[bool, ...]
        ) -> Variant:
            return self.lowering.variant(plan.regions[region], mine, live)

        return bind(plan, actions, specialised, fill)  # type: ignore[arg-type]

    def _run_stages(self, stream: Stream, leaves: Sequence[Any], values: list[Any]) -> None:
        """Evaluate the stages whose inputs changed; fill in what all of them give."""
        if self._stage_calls is None:
            self._stage_calls = [
                self._bind(stage.plan, (), None) for stage in self.plan.stages
            ]
        changed = self._changed_leaves(stream, leaves)
        for k, (stage, calls) in enumerate(
            zip(self.plan.stages, self._stage_calls, strict=True)
        ):
            if not stream.stages[k] or not changed.isdisjoint(stage.leaves):
                inner: list[Any] = [None] * stage.plan.size
                for number, outer in zip(stage.plan.inputs, stage.inputs, strict=True):
                    inner[number] = values[outer]
                execute(calls, inner)
                stream.stages[k] = [inner[number] for number in stage.plan.outputs]
            for number, value in zip(stage.outputs, stream.stages[k], strict=True):
                if number is not None:
                    values[number] = value

    def _changed_leaves(self, stream: Stream, leaves: Sequence[Any]) -> set[int]:
        """Inputs of the conditioning that are not the tensors they were; none is read."""
        changed = set[int]()
        for i in frozenset[int]().union(*(stage.leaves for stage in self.plan.stages)):
            leaf = leaves[i]
            if not isinstance(leaf, torch.Tensor):
                continue
            if i not in stream.seen or not stream.seen[i].is_same(leaf):
                stream.seen[i] = Seen.of(leaf)
                changed.add(i)
        return changed

    def _warn_cold(self, cold: int, position: Position) -> None:
        self._warned = True
        warnings.warn(
            f"step {position.step} starts cold: {cold} of {len(self.table.sites)} sites "
            "should reuse an output that this trajectory has not kept, and are computed "
            "instead. The trajectory did not begin at step 0, skipped a step, or could not "
            "be recognised (see Denoiser.cache_context and Denoiser.attach_scheduler)",
            stacklevel=6,
        )


def tensor_finder(gm: fx.GraphModule) -> Callable[[str], torch.Tensor]:
    """A function from a path to the graph's parameter or buffer, without its gradient."""

    def find(path: str) -> torch.Tensor:
        owner, _, name = path.rpartition(".")
        found = getattr(gm.get_submodule(owner), name)
        assert isinstance(found, torch.Tensor)
        return found.detach()

    return find
