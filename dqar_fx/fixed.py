"""Conditioning of a fixed set of labels at fixed timesteps, which needs no parameter any more.

A class-conditional denoiser that will only ever be asked for some labels at some timesteps can
do without what makes its conditioning: each label is evaluated once at all timesteps, and a
call takes the rows of its own. Only where the table is smaller than what it stands for: for
DiT-XL/2 that is up to some thirty labels at 50 steps, not a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.passes.graphs import graph_outputs, tensor_value

from .conditioning import Memo, Tabulated
from .errors import DqarError, FormatError
from .rulers import Ruler
from .steps import Position, Seen

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .conditioning import Conditioning
    from .program import Program

TOLERANCE = 1e-4
"""Relative, of a batch of several labels against the rows of each."""


@dataclass(frozen=True)
class Fixed:
    """A table of labels and timesteps.

    Attributes:
        leaf: Position of the labels among the denoiser's inputs.
        labels: Those that it has.
        steps: Place of each timestep.
        numbers: Tensors of the step's plan that it gives.
        tables: Of each, ``[steps, labels, ...]``; 1 in the place of either where all have
            the same.
        is_per_sample: Of each, whether its first dimension is the batch.
    """

    leaf: int
    labels: tuple[int, ...]
    steps: dict[float, int]
    numbers: tuple[int, ...]
    tables: tuple[torch.Tensor, ...]
    is_per_sample: tuple[bool, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in self.tables}
        return sum(storage.nbytes() for storage in storages.values())

    def fill(
        self, memo: Memo, leaves: Sequence[Any], values: list[Any], position: Position
    ) -> None:
        """Fill in, among the numbered tensors ``values``, the rows of a call.

        Raises:
            DqarError: A label or a timestep is none of the table's, or not known ahead.
        """
        labels = leaves[self.leaf]
        seen, known = memo.seen.get(self.leaf), memo.tabulated.get(0)
        is_same = seen is not None and seen.is_same(labels)
        if known is None or not is_same or not known.goes_on(position):
            memo.seen[self.leaf] = Seen.of(labels)
            known = self._gather(labels, position)
            memo.tabulated[0] = known
        assert known.rows is not None
        for number, value in zip(self.numbers, known.rows[position.step], strict=True):
            values[number] = value

    def _gather(self, labels: torch.Tensor, position: Position) -> Tabulated:
        """The rows of some labels at the timesteps of a trajectory."""
        ruler = position.ruler
        if ruler is None:
            raise self._unknown("a timestep that is not known ahead", self.steps)
        asked = labels.tolist()
        strange = set(asked).difference(self.labels)
        if strange:
            raise self._unknown(f"labels {sorted(strange)}", self.labels)
        if not self.steps.keys() >= set(ruler.values):
            others = sorted(set(ruler.values).difference(self.steps))
            raise self._unknown(f"timesteps {others}", self.steps)
        steps = torch.tensor([self.steps[v] for v in ruler.values], device=labels.device)
        places = torch.tensor([self.labels.index(v) for v in asked], device=labels.device)
        picked = (
            table[:, places] if per_sample else table[:, 0]
            for table, per_sample in zip(self.tables, self.is_per_sample, strict=True)
        )
        columns = (
            value[steps] if len(value) > 1 else value.expand(len(steps), *value.shape[1:])
            for value in picked
        )
        rows = list(zip(*(column.unbind(0) for column in columns), strict=True))
        return Tabulated(position.trajectory, ruler, rows)

    def _unknown(self, what: str, known: Collection[float]) -> DqarError:
        return DqarError(
            f"the conditioning's parameters were dropped, and the call has {what}. Expected "
            f"some of {list(known)}; transform the model anew for others"
        )


def check_fixable(program: Program, name: str, labels: Sequence[int]) -> int:
    """Position of the labels among a program's inputs.

    Raises:
        FormatError: Its conditioning is not that of labels and timesteps, or has more bytes
            than its parameters.
    """
    inputs = program.captured.gm.graph.find_nodes(op="placeholder")
    names = [str(node.target) for node in inputs]
    read = {names[i] for stage in program.plan.stages for i in stage.leaves}
    timestep = program.roles.timestep
    expected = {name, *([] if timestep is None else [names[timestep]])}
    value = tensor_value(inputs[names.index(name)]) if name in names else None
    if value is None or value.dim() != 1 or read != expected:
        raise FormatError(
            f"conditioning is not dropped: it reads {sorted(read)}, expected a timestep and "
            f"the 1-D input {name!r} alone. Give release='host' or 'disk' instead"
        )
    if not labels:
        raise FormatError(f"{name}=[]: expected the labels that calls may have")
    return names.index(name)


def fixed_bytes(program: Program, num_rows: int) -> int:
    """Bytes of the table of a program for so many labels times timesteps."""
    read = {number for call in program.plan.calls for number in call.inputs}
    total = 0
    for stage in program.plan.stages:
        if program.roles.timestep in stage.leaves:
            values = map(tensor_value, graph_outputs(stage.gm.graph))
            given = zip(stage.outputs, values, strict=True)
            total += sum(
                v.nbytes // v.shape[0] for n, v in given if n in read and v is not None
            )
    return num_rows * total


def tabulate_labels(
    program: Program,
    conditioning: Conditioning,
    leaf: int,
    labels: Sequence[int],
    ruler: Ruler,
) -> Fixed:
    """Evaluate each label at all timesteps.

    Raises:
        FormatError: What a sample gets depends on the others of its batch.
    """
    read = {number for call in program.plan.calls for number in call.inputs}
    read |= set(program.plan.outputs)
    given = [n for stage in program.plan.stages for n in stage.outputs if n in read]
    numbers = [n for n in given if n is not None]
    leaves = blank_leaves(program, ruler)
    batch = len(leaves[leaf])

    def evaluate(values_of_labels: torch.Tensor) -> list[torch.Tensor]:
        """Of each number ``[steps, ...]``."""
        leaves[leaf] = values_of_labels.to(leaves[leaf])
        return evaluate_all(program, conditioning, leaves, ruler, numbers)

    found = [evaluate(torch.full((batch,), label)) for label in labels]
    per_sample = [value.dim() > 1 and value.shape[1] == batch for value in found[0]]
    tables = tuple(
        torch.stack([each[k][:, 0] for each in found], 1) if split else found[0][k][:, None]
        for k, split in enumerate(per_sample)
    )
    mixed = torch.arange(batch) % len(labels)
    check = evaluate(torch.tensor(list(labels))[mixed])
    for table, split, expected in zip(tables, per_sample, check, strict=True):
        got = table[:, mixed] if split else table[:, 0]
        if (got - expected).abs().max() > TOLERANCE * expected.abs().max():
            raise FormatError(
                "conditioning is not dropped: what a sample gets depends on the others of its "
                "batch. Give release='host' or 'disk' instead"
            )
    steps = {value: step for step, value in enumerate(ruler.values)}
    return Fixed(leaf, tuple(labels), steps, tuple(numbers), tables, tuple(per_sample))


def blank_leaves(program: Program, ruler: Ruler) -> list[Any]:
    """Inputs of the captured shapes, with the first timestep."""
    nodes = program.captured.gm.graph.find_nodes(op="placeholder")
    values = [tensor_value(node) for node in nodes]
    leaves: list[Any] = [
        None if v is None else torch.zeros(v.shape, dtype=v.dtype, device=v.device)
        for v in values
    ]
    timestep = program.roles.timestep
    if timestep is not None:
        leaves[timestep] = ruler.tensor[0].expand(leaves[timestep].shape)
    return leaves


def evaluate_all(
    program: Program,
    conditioning: Conditioning,
    leaves: Sequence[Any],
    ruler: Ruler,
    numbers: Sequence[int],
) -> list[torch.Tensor]:
    """What the stages give at each step, ``[steps, ...]`` per number; 1 where all are one."""
    memo, values = Memo(), [None] * program.plan.size
    values[: len(leaves)] = leaves
    conditioning.evaluate(memo, leaves, values, Position(object(), (None, 0), 0, ruler=ruler))
    found: dict[int, torch.Tensor] = {}
    for k, stage in enumerate(program.plan.stages):
        known = memo.tabulated.get(k)
        rows = None if known is None else known.rows
        for place, number in enumerate(stage.outputs):
            if number in numbers:
                of_steps = [row[place] for row in rows or [memo.outputs[k]]]
                found[number] = torch.stack(of_steps)
    return [found[number] for number in numbers]
