"""Runs the conditioning: each stage only when one of its inputs changed.

What does not read the timestep is evaluated once per prompt. What does is evaluated at every
step; compiled denoisers evaluate it for all steps of a trajectory at once, where the timesteps
are known ahead (an element of a descending tensor is passed, as in ``for t in timesteps``):
one product of many rows reads a weight once instead of once per step. The order of its sums
differs from that of a product of few rows, so that eager mode does not do it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .plan import BoundCall, Stage, execute
from .steps import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .plan import Plan, Static
    from .steps import Position

MAX_TABULATED_BYTES = 2**28
"""Largest conditioning of a whole trajectory that is kept; more is evaluated step by step."""

Outputs = tuple[torch.Tensor, ...]
"""What a stage gives at one step."""


@dataclass(frozen=True)
class Tabulated:
    """A stage's outputs for each step of one trajectory, or None where it varies otherwise."""

    trajectory: object
    rows: list[Outputs] | None


@dataclass
class Memo:
    """What one stream knows of the conditioning.

    Attributes:
        outputs: Per stage, what it gave for the inputs that were seen last.
        seen: Per denoiser input, the tensor that it was then.
        tabulated: Per stage, its outputs for a trajectory.
    """

    outputs: dict[int, Outputs] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    tabulated: dict[int, Tabulated] = field(default_factory=dict)


class Conditioning:
    """The stages of one program.

    Args:
        stages: In the order in which they run.
        timestep: Position of the timestep among the denoiser's inputs, or None.
        ahead: Whether to evaluate all steps of a trajectory at once.
        copy: Whether to copy what a stage gives: a replayed CUDA graph overwrites it.
        bind: Gives the bound calls of a stage's plan.
        fill: Gives the tensor for a parameter's path.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        timestep: int | None,
        *,
        ahead: bool,
        copy: bool,
        bind: Callable[[Plan], list[BoundCall]],
        fill: Callable[[Static], Any],
    ) -> None:
        self.stages = tuple(stages)
        self.leaves = frozenset[int]().union(*(stage.leaves for stage in stages))
        self._timestep = timestep
        self._ahead, self._copy = ahead, copy
        self._bind, self._fill = bind, fill
        self._calls: dict[int, list[BoundCall]] = {}

    def forget(self) -> None:
        """Take parameters anew at the next step."""
        self._calls.clear()

    def evaluate(
        self, memo: Memo, leaves: Sequence[Any], values: list[Any], position: Position
    ) -> None:
        """Fill in, among the numbered tensors ``values``, what the stages give."""
        changed = self._changed_leaves(memo, leaves)
        for k, stage in enumerate(self.stages):
            rows = self._rows_ahead(k, memo, changed, values, position)
            if rows is not None:
                memo.outputs[k] = rows[position.step]
            elif k not in memo.outputs or not changed.isdisjoint(stage.leaves):
                memo.outputs[k] = self._run(k, values)
            for number, value in zip(stage.outputs, memo.outputs[k], strict=True):
                if number is not None:
                    values[number] = value

    def _changed_leaves(self, memo: Memo, leaves: Sequence[Any]) -> set[int]:
        """Inputs that are not the tensors they were; no value is read."""
        changed = set[int]()
        for i in self.leaves:
            leaf = leaves[i]
            if not isinstance(leaf, torch.Tensor):
                continue
            if i not in memo.seen or not memo.seen[i].is_same(leaf):
                memo.seen[i] = Seen.of(leaf)
                changed.add(i)
        return changed

    def _run(self, k: int, values: Sequence[Any]) -> Outputs:
        """Evaluate a stage for this step."""
        stage = self.stages[k]
        if k not in self._calls:
            self._calls[k] = self._bind(stage.plan)
        inner: list[Any] = [None] * stage.plan.size
        for number, outer in zip(stage.plan.inputs, stage.inputs, strict=True):
            inner[number] = values[outer]
        execute(self._calls[k], inner)
        outputs = (inner[number] for number in stage.plan.outputs)
        return tuple(o.clone() for o in outputs) if self._copy else tuple(outputs)

    def _rows_ahead(
        self,
        k: int,
        memo: Memo,
        changed: set[int],
        values: Sequence[Any],
        position: Position,
    ) -> list[Outputs] | None:
        """The outputs of a stage for all steps, if they can be known ahead."""
        leaves = self.stages[k].leaves
        if not self._ahead or position.timesteps is None or self._timestep not in leaves:
            return None
        known = memo.tabulated.get(k)
        if known is None or known.trajectory is not position.trajectory:
            rows = self._tabulate(k, values, position.timesteps)
            memo.tabulated[k] = Tabulated(position.trajectory, rows)
        elif not changed.isdisjoint(leaves - {self._timestep}):
            memo.tabulated[k] = Tabulated(position.trajectory, None)
        return memo.tabulated[k].rows

    def _tabulate(
        self, k: int, values: Sequence[Any], timesteps: torch.Tensor
    ) -> list[Outputs] | None:
        """Evaluate a stage for all timesteps in one batched call."""
        stage, steps = self.stages[k], len(timesteps)
        if steps * stage.nbytes > MAX_TABULATED_BYTES:
            return None
        inputs = [values[number] for number in stage.inputs]
        dims = [0 if number == self._timestep else None for number in stage.inputs]
        for i, dim in enumerate(dims):
            if dim == 0:
                shape = inputs[i].shape
                column = timesteps.reshape(steps, *(1 for _ in shape))
                inputs[i] = column.expand(steps, *shape)
        static = [self._fill(argument) for argument in stage.static]
        batched = torch.func.vmap(stage.gm.forward, (*dims, *(None for _ in static)))
        outputs = batched(*inputs, *static)
        return list(zip(*(output.unbind(0) for output in outputs), strict=True))
