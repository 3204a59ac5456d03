"""Tabulates the conditioning of fixed labels and timesteps, then drops what made it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import DqarError, OptionError
from dqar_fx.passes.support.graphs import graph_outputs, tensor_value
from dqar_fx.steps.position import Position
from dqar_fx.steps.timesteps import Timesteps

from .fixed import ConditioningTable, TablePack
from .memo import Memo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .conditioning import Conditioning
    from .parameter_bytes import PlannedModel

TOLERANCE = 1e-4
"""Relative, of a batch of several labels against the rows of each."""


def check_size(
    programs: Sequence[PlannedModel], released: int, num_labels: int, num_steps: int
) -> None:
    """Raise if the table would be larger than the bytes that are released for it."""
    table = sum(fixed_bytes(program, num_labels * num_steps) for program in programs)
    if table >= released:
        raise DqarError(
            f"the table of {num_labels} labels at {num_steps} timesteps takes {table} bytes, "
            f"its parameters {released}. Expected fewer labels or timesteps; or give "
            "transform release='host' or 'disk'"
        )


def timestep_of(program: PlannedModel) -> int:
    """Position of the timestep among a program's inputs."""
    found = program.roles.timestep
    assert found is not None, "checked before"
    return found


def check_fixable(program: PlannedModel, name: str, labels: Sequence[int]) -> int:
    """Position of the labels among a program's inputs.

    Raises:
        OptionError: Its conditioning is not that of labels and timesteps, or has more bytes
            than its parameters.
    """
    inputs = program.captured.gm.graph.find_nodes(op="placeholder")
    names = [str(node.target) for node in inputs]
    read = {i for stage in program.plan.stages for i in stage.leaves}
    leaf = names.index(name) if name in names else None
    value = None if leaf is None else tensor_value(inputs[leaf])
    if value is None or value.dim() != 1 or read != {leaf, program.roles.timestep}:
        raise OptionError(
            f"conditioning is not dropped: it reads {sorted(names[i] for i in read)}, "
            f"expected a timestep and the 1-D input {name!r} alone. Give release='host' or "
            "'disk' instead"
        )
    if not labels:
        raise OptionError(f"{name}=[]: expected the labels that calls may have")
    return names.index(name)


def fixed_bytes(program: PlannedModel, num_rows: int) -> int:
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
    program: PlannedModel,
    conditioning: Conditioning,
    leaf: int,
    labels: Sequence[int],
    timesteps: torch.Tensor,
) -> ConditioningTable:
    """Evaluate each label at all timesteps, which are 1-D.

    Raises:
        OptionError: What a sample gets depends on the others of its batch.
    """
    inputs = program.captured.gm.graph.find_nodes(op="placeholder")
    value = inputs[timestep_of(program)].meta["val"]
    known = Timesteps.of(timesteps.to(value.device, value.dtype))
    read = {number for call in program.plan.calls for number in call.inputs}
    read |= set(program.plan.outputs)
    given = [n for stage in program.plan.stages for n in stage.outputs if n in read]
    numbers = [n for n in given if n is not None]
    leaves = blank_leaves(program, known)
    batch = len(leaves[leaf])

    def evaluate(of_samples: torch.Tensor) -> dict[int, torch.Tensor]:
        """Give the outputs ``[steps, ...]`` of samples by number."""
        leaves[leaf] = of_samples.to(leaves[leaf])
        return evaluate_all(program, conditioning, leaves, known, numbers)

    found = [evaluate(torch.full((batch,), label)) for label in labels]
    split = {n for n, v in found[0].items() if v.dim() > 1 and v.shape[1] == batch}
    by_kind: dict[object, dict[int, torch.Tensor]] = defaultdict(dict)
    for number in sorted(split):
        table = torch.stack([each[number][:, 0] for each in found], 1)
        by_kind[table.dtype, len(table)][number] = table
    shared = {n: v for n, v in found[0].items() if n not in split}
    steps = {value: step for step, value in enumerate(known.values)}
    packs = tuple(map(TablePack.of, by_kind.values()))
    fixed = ConditioningTable(leaf, tuple(labels), steps, packs, shared)
    check_mixed(fixed, evaluate, leaves)
    return fixed


def check_mixed(
    fixed: ConditioningTable,
    evaluate: Callable[[torch.Tensor], dict[int, torch.Tensor]],
    leaves: Sequence[Any],
) -> None:
    """Raise if a batch of several labels is not given the rows of each."""
    labels = torch.tensor(fixed.labels)[
        torch.arange(len(leaves[fixed.leaf])) % len(fixed.labels)
    ]
    expected = evaluate(labels)
    places = fixed.find_labels(leaves[fixed.leaf])
    values: dict[int, torch.Tensor] = {}
    for step in (0, len(fixed.steps) - 1):
        for pack in fixed.packs:
            pack.fill(step, places, values)
        values.update({n: v[min(step, len(v) - 1)] for n, v in fixed.shared.items()})
        for number, value in values.items():
            wanted = expected[number][min(step, len(expected[number]) - 1)]
            if (value - wanted).abs().max() > TOLERANCE * wanted.abs().max():
                raise OptionError(
                    "conditioning is not dropped: what a sample gets depends on the others "
                    "of its batch. Give release='host' or 'disk' instead"
                )


def blank_leaves(program: PlannedModel, timesteps: Timesteps) -> list[Any]:
    """Inputs of the captured shapes, with the first timestep."""
    nodes = program.captured.gm.graph.find_nodes(op="placeholder")
    values = [tensor_value(node) for node in nodes]
    leaves: list[Any] = [
        None if v is None else torch.zeros(v.shape, dtype=v.dtype, device=v.device)
        for v in values
    ]
    timestep = timestep_of(program)
    leaves[timestep] = timesteps.tensor[0].expand(leaves[timestep].shape)
    return leaves


def evaluate_all(
    program: PlannedModel,
    conditioning: Conditioning,
    leaves: Sequence[Any],
    timesteps: Timesteps,
    numbers: Sequence[int],
) -> dict[int, torch.Tensor]:
    """What the stages give at each step, ``[steps, ...]`` per number; 1 where all are one."""
    memo, values = Memo(), [None] * program.plan.size
    values[: len(leaves)] = leaves
    conditioning.evaluate(
        memo, leaves, values, Position(object(), (None, 0), 0, timesteps=timesteps)
    )
    found: dict[int, torch.Tensor] = {}
    for k, stage in enumerate(program.plan.stages):
        known = memo.tabulated.get(k)
        rows = None if known is None else known.rows
        for place, number in enumerate(stage.outputs):
            if number is not None and number in numbers:
                of_steps = (row[place] for row in rows or [memo.outputs[k]])
                found[number] = torch.stack([each for each in of_steps if each is not None])
    return found
