"""Runs the conditioning: each stage only when one of its inputs changed, for what is read.

What does not read the timestep is evaluated once per prompt. What does is evaluated at every
step, or for all steps of a trajectory at once, where the timesteps are known ahead: one
product of many rows reads a weight once instead of once per step. The order of its sums
differs from that of a product of few rows, so that eager mode does it only if asked to.

A stream that begins with the inputs of another takes what was evaluated for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, repeat
from operator import is_not
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from dqar_fx.capture.offloaded import OffloadedTensor
from dqar_fx.passes.support.equal_tensors import is_comparable, sum_bits
from dqar_fx.passes.support.tracing_lock import TRACING
from dqar_fx.plan.liveness import Needs, restrict
from dqar_fx.plan.plan import BoundCall, Stage, execute
from dqar_fx.steps.seen import SeenTensor, digest_of

from .memo import Memo, TabulatedStage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch import fx

    from dqar_fx.plan.liveness import Live
    from dqar_fx.plan.plan import Plan, Static
    from dqar_fx.steps.position import Position
    from dqar_fx.steps.timesteps import Timesteps

    from .fixed import ConditioningTable
    from .memo import Outputs
    from .release import Residence

MAX_TABULATED_BYTES = 2**28
"""Largest conditioning of a whole trajectory that is kept unasked; more is evaluated step by
step."""
WAYS = ("auto", "step", "trajectory")


@dataclass(frozen=True)
class AheadPolicy:
    """Says when a stage is evaluated for all steps of a trajectory at once.

    Attributes:
        way: ``"auto"``, ``"step"`` or ``"trajectory"``.
        is_compiled: Whether sums may be taken in another order.
        timestep: Position of the timestep among the denoiser's inputs; None if it has none.
    """

    way: str
    is_compiled: bool
    timestep: int | None = None

    @cached_property
    def is_wanted(self) -> bool:
        """Whether to evaluate ahead where the timesteps are known."""
        return self.way == "trajectory" or (self.way == "auto" and self.is_compiled)

    @cached_property
    def is_asked(self) -> bool:
        """Whether to do so at any cost in memory, or in reading an accelerator."""
        return self.way == "trajectory"

    def is_timed(self, stage: Stage) -> bool:
        """Whether a stage reads the timestep, so that each step has outputs of its own."""
        return self.timestep in stage.leaves

    def tabulates(self, stage: Stage, live: Live, num_steps: int) -> bool:
        """Whether a stage with these live outputs is evaluated ahead, at known timesteps."""
        if not (self.is_wanted and self.is_timed(stage)):
            return False
        return self.is_asked or num_steps * stage.count_bytes(live) <= MAX_TABULATED_BYTES


class Conditioning:
    """Runs the conditioning stages of one program.

    Args:
        stages: In the order in which they run.
        ahead: When to evaluate all steps of a trajectory at once.
        copy: Whether to copy what a stage gives: a replayed CUDA graph overwrites it.
        bind: Gives the bound calls of a stage's plan.
        narrow: Gives a stage's graph for live outputs, and the inputs that it takes.
        fill: Gives the tensor for a parameter's path.
        shares: Whether streams take over what others know; not where calls are timed.

    Attributes:
        residence: Where the parameters are; None where they stay.
        fixed: What stands for the stages once their parameters were dropped.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        ahead: AheadPolicy,
        copy: bool,
        bind: Callable[[Plan], list[BoundCall]],
        narrow: Callable[[fx.GraphModule, Live], tuple[fx.GraphModule, tuple[int, ...]]],
        fill: Callable[[Static], Any],
        shares: bool = True,
    ) -> None:
        self._shares = shares
        self.stages = tuple(stages)
        self.leaves = frozenset[int]().union(*(stage.leaves for stage in stages))
        everything = tuple((True,) * len(stage.outputs) for stage in stages)
        self._everything = Needs(everything, everything)
        self.residence: Residence | None = None
        self.fixed: ConditioningTable | None = None
        self._ahead, self._copy = ahead, copy
        self._bind, self._narrow, self._fill = bind, narrow, fill
        self._calls: dict[tuple[int, Live], list[BoundCall]] = {}
        self._sums: torch.Tensor | None = None
        self._memos, self._reading = WeakSet[Memo](), Lock()

    def forget(self) -> None:
        """Take parameters anew when next they are needed."""
        self._calls.clear()
        self._memos.clear()

    def has_other_sources(self) -> bool:
        """Whether parameters were written to, by whatever way, since this was asked last.

        Nothing counts writes through ``.data``, so that their bits are looked at.
        """
        if self.fixed is not None or (self.residence is not None and self.residence.is_away):
            return False
        paths = {path for stage in self.stages for path in stage.static}
        sources = [self._fill(path) for path in sorted(map(str, paths))]
        if any(isinstance(each, OffloadedTensor) for each in sources):
            self._memos.clear()
            return True  # they may have been: nothing is brought in to look
        sums = [sum_bits(tensor) for tensor in sources if is_comparable(tensor)]
        if not sums:
            return False
        before, self._sums = self._sums, torch.stack(sums)
        is_other = before is not None and not torch.equal(before, self._sums)
        if is_other:
            self._memos.clear()
        return is_other

    def evaluate(
        self,
        memo: Memo,
        leaves: Sequence[Any],
        values: list[Any],
        position: Position,
        needs: Needs | None = None,
        only: Sequence[int] | None = None,
    ) -> None:
        """Fill in, among the numbered tensors ``values``, what is needed of the stages.

        Args:
            memo: What the stream knows of them.
            leaves: The denoiser's flat inputs; those of other stages may be missing.
            values: The numbered tensors.
            position: Which step of which stream it is.
            needs: What the step reads; None for everything.
            only: Places of the stages that are asked; None for all.
        """
        needs = needs or self._everything
        if self.fixed is not None:
            self.fixed.fill(memo, leaves, values, position)
            return
        if self.residence is None:
            self._evaluate(memo, leaves, values, position, needs, only)
            return
        with TRACING:  # else another thread might release what is read here
            is_settled = self._evaluate(memo, leaves, values, position, needs, only)
            self.residence.release(is_settled=is_settled)

    def _evaluate(
        self,
        memo: Memo,
        leaves: Sequence[Any],
        values: list[Any],
        position: Position,
        needs: Needs,
        only: Sequence[int] | None,
    ) -> bool:
        """Do so; whether no stage had to be evaluated for this step alone."""
        asked = range(len(self.stages)) if only is None else only
        self._take_note(memo, leaves, asked)
        is_settled = True
        for k in asked:
            stage = self.stages[k]
            if not any(needs.step[k]) and not self._is_read_ahead(stage, k, position, needs):
                continue
            rows = self._rows_ahead(k, memo, values, position, needs)
            if rows is not None:
                memo.outputs[k] = rows[position.step]
            else:
                is_of_step = self._ahead.is_timed(stage)
                is_settled = is_settled and not is_of_step
                if not gives(memo.outputs.get(k), needs.step[k]):
                    live = needs.step[k] if is_of_step else needs.trajectory[k]
                    memo.outputs[k] = self._run(k, values, live)
            for number, value in zip(stage.outputs, memo.outputs[k], strict=True):
                if number is not None:
                    values[number] = value
        return is_settled

    def _is_read_ahead(self, stage: Stage, k: int, position: Position, needs: Needs) -> bool:
        """Whether a stage may be read by one that is evaluated for all steps now."""
        is_ahead = self._ahead.is_wanted and position.timesteps is not None
        return is_ahead and not self._ahead.is_timed(stage) and any(needs.trajectory[k])

    def _take_note(self, memo: Memo, leaves: Sequence[Any], asked: Sequence[int]) -> None:
        """Note the inputs of some stages, and drop what these gave for others."""
        read = self.leaves
        if len(asked) < len(self.stages):
            read = frozenset[int]().union(*(self.stages[k].leaves for k in asked))
        with self._reading:  # inputs and what was given for them change together
            if self._shares and read.isdisjoint(memo.seen):
                self._take_over(memo, leaves, read, asked)
            changed = self._changed_leaves(memo, leaves, read)
            for k in asked:
                self._outdate(k, memo, changed)

    def _take_over(
        self, memo: Memo, leaves: Sequence[Any], read: Collection[int], asked: Sequence[int]
    ) -> None:
        """Take what another stream knows of some stages, if its inputs had equal values.

        Digests tell, since nothing counts some ways of writing to a tensor.
        """
        given = {
            i: leaves[i]
            for i in read
            if i != self._ahead.timestep and isinstance(leaves[i], torch.Tensor)
        }
        if not all(self._compares(i, leaf) for i, leaf in given.items()):
            return
        memo.digests |= {i: digest_of(leaf).view(torch.int64) for i, leaf in given.items()}
        for other in self._memos:
            if not all(has_digest(other, memo, i, leaf) for i, leaf in given.items()):
                continue
            memo.seen |= {i: SeenTensor.of(leaf) for i, leaf in given.items()}
            for k in asked:
                if k in other.outputs and not self._ahead.is_timed(self.stages[k]):
                    memo.outputs[k] = other.outputs[k]
                if k in other.tabulated:
                    memo.tabulated[k] = other.tabulated[k]
            break
        self._memos.add(memo)

    def _changed_leaves(
        self, memo: Memo, leaves: Sequence[Any], read: Collection[int]
    ) -> set[int]:
        """Inputs that are not the tensors they were, nor have their values."""
        changed = set[int]()
        for i in read:
            leaf = leaves[i]
            if not isinstance(leaf, torch.Tensor):
                continue
            seen = memo.seen.get(i)
            if seen is not None and seen.is_same(leaf):
                continue
            memo.seen[i] = SeenTensor.of(leaf)
            if seen is None or not (self._compares(i, leaf) and seen.is_equal(leaf)):
                changed.add(i)
                if seen is not None:
                    memo.digests.pop(i, None)  # of what was evaluated before
        return changed

    def _compares(self, i: int, leaf: torch.Tensor) -> bool:
        """Whether to look at an input's values: where nothing waits, or if it saves much."""
        is_cheap = leaf.device.type == "cpu" or self._ahead.is_asked
        return is_cheap and i != self._ahead.timestep

    def _outdate(self, k: int, memo: Memo, changed: set[int]) -> None:
        """Drop what a stage gave if an input changed; its table, if not the timestep."""
        if not changed.isdisjoint(self.stages[k].leaves):
            memo.outputs.pop(k, None)
        known = memo.tabulated.get(k)
        if known is not None and not changed.isdisjoint(
            self.stages[k].leaves - {self._ahead.timestep}
        ):
            memo.tabulated[k] = replace(known, rows=None)

    def _run(self, k: int, values: Sequence[Any], live: Live) -> Outputs:
        """Evaluate live outputs of a stage for this step."""
        if self.residence is not None:
            self.residence.bring_back()
        stage = self.stages[k]
        calls = self._calls.get((k, live))
        if calls is None:
            with TRACING:
                calls = self._calls[k, live] = self._bind(restrict(stage, live))
        inner: list[Any] = [None] * stage.plan.size
        for number, outer in zip(stage.plan.inputs, stage.inputs, strict=True):
            inner[number] = values[outer]
        execute(calls, inner)
        numbers = zip(stage.plan.outputs, live, strict=True)
        outputs = (inner[number] if is_live else None for number, is_live in numbers)
        if not self._ahead.is_compiled:
            return tuple(outputs)
        # regions are compiled for strides: the same as those of a table, whatever was narrowed
        return tuple(None if o is None else unify(o, copy=self._copy) for o in outputs)

    def _rows_ahead(
        self, k: int, memo: Memo, values: Sequence[Any], position: Position, needs: Needs
    ) -> list[Outputs] | None:
        """The outputs of a stage for all steps, if they can be known ahead."""
        timesteps = position.timesteps
        if not self._ahead.is_wanted or timesteps is None:
            return None
        if not self._ahead.is_timed(self.stages[k]):
            return None
        known = memo.tabulated.get(k)
        if (
            known is None
            or not known.goes_on(position)
            or not (known.rows is None or gives(known.rows[0], needs.step[k]))
        ):
            rows = self._tabulate(k, values, timesteps, needs.trajectory[k])
            known = TabulatedStage(position.trajectory, timesteps, rows)
        if memo.tabulated.get(k) is not known or known.trajectory is not position.trajectory:
            memo.tabulated[k] = replace(known, trajectory=position.trajectory)
        return known.rows

    def _tabulate(
        self, k: int, values: Sequence[Any], timesteps: Timesteps, live: Live
    ) -> list[Outputs] | None:
        """Evaluate live outputs of a stage for all timesteps in one batched call."""
        stage, steps = self.stages[k], len(timesteps.values)
        if not self._ahead.tabulates(stage, live, steps):
            return None
        if self.residence is not None:
            self.residence.bring_back()
        inputs = [values[number] for number in stage.inputs]
        dims = [0 if number == self._ahead.timestep else None for number in stage.inputs]
        for i, dim in enumerate(dims):
            if dim == 0:
                shape = inputs[i].shape
                column = timesteps.tensor.reshape(steps, *(1 for _ in shape))
                inputs[i] = column.expand(steps, *shape)
        with TRACING:
            gm, kept = self._narrow(stage.gm, live)
        flowing = len(inputs)
        taken = [
            inputs[i] if i < flowing else self._fill(stage.static[i - flowing]) for i in kept
        ]
        in_dims = tuple(dims[i] if i < flowing else None for i in kept)
        outputs = iter(torch.func.vmap(gm.forward, in_dims)(*taken))
        columns = [
            unify(next(outputs), copy=False).unbind(0) if is_live else (None,) * steps
            for is_live in live
        ]
        return list(zip(*columns, strict=True))


def has_digest(one: Memo, other: Memo, i: int, leaf: torch.Tensor) -> bool:
    """Whether what one stream evaluated an input for had the values that another's has."""
    if i not in one.digests or i not in one.seen:
        return False
    was = one.seen[i].tensor
    if (was.shape, was.dtype, was.device) != (leaf.shape, leaf.dtype, leaf.device):
        return False
    return torch.equal(one.digests[i], other.digests[i])


def gives(outputs: Outputs | None, live: Live) -> bool:
    """Whether what a stage gave has the live outputs."""
    if outputs is None:
        return False
    return all(map(is_not, compress(outputs, live), repeat(None)))


def unify(value: torch.Tensor, *, copy: bool) -> torch.Tensor:
    """A value in memory of its own and no more, contiguous; a copy where it is asked for."""
    if is_alone(value) and not copy:
        return value
    return value.clone(memory_format=torch.contiguous_format)


def is_alone(value: torch.Tensor) -> bool:
    """Whether a value is contiguous, and all that is in its memory."""
    num_bytes = value.numel() * value.itemsize
    return value.untyped_storage().nbytes() == num_bytes and value.is_contiguous()
