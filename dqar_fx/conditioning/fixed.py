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

from dqar_fx.errors import DqarError
from dqar_fx.steps.position import Position
from dqar_fx.steps.seen import SeenTensor

from .memo import Memo
from .parameter_bytes import storage_key

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass(frozen=True)
class TablePack:
    """Tensors of one dtype, side by side.

    Attributes:
        table: ``[steps, labels, features]``; one step where all have the same.
        numbers: Tensors of the step's plan that it holds.
        shapes: The shape of each for one sample.
    """

    table: torch.Tensor
    numbers: tuple[int, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tables: dict[int, torch.Tensor]) -> TablePack:
        """Put tensors ``[steps, labels, ...]`` of one dtype, by number, side by side."""
        flat = torch.cat([table.flatten(2) for table in tables.values()], 2)
        return cls(flat, tuple(tables), tuple(table.shape[2:] for table in tables.values()))

    def fill(
        self, step: int, places: torch.Tensor, values: dict[int, Any] | list[Any]
    ) -> None:
        """Fill in the rows of the labels at some places."""
        row = self.table[min(step, len(self.table) - 1)].index_select(0, places)
        parts = torch.split(row, [shape.numel() for shape in self.shapes], 1)
        for number, part, shape in zip(self.numbers, parts, self.shapes, strict=True):
            values[number] = part.view(len(places), *shape)


@dataclass(frozen=True)
class ConditioningTable:
    """A table of labels and timesteps.

    Attributes:
        leaf: Position of the labels among the denoiser's inputs.
        labels: The labels that have rows.
        steps: Place of each timestep.
        packs: What differs from label to label.
        shared: What does not: ``[steps, ...]`` by number, one step where all have the same.
    """

    leaf: int
    labels: tuple[int, ...]
    steps: dict[float, int]
    packs: tuple[TablePack, ...]
    shared: dict[int, torch.Tensor]

    @property
    def tables(self) -> list[torch.Tensor]:
        """All tensors that the table holds."""
        return [*(pack.table for pack in self.packs), *self.shared.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that differ from step to step."""
        return sum(t.nbytes for t in self.tables if len(t) == len(self.steps))

    @property
    def held_bytes(self) -> int:
        """Bytes of all storages that the table holds."""
        storages = {storage_key(table): table.untyped_storage() for table in self.tables}
        return sum(storage.nbytes() for storage in storages.values())

    def fill(
        self, memo: Memo, leaves: Sequence[Any], values: list[Any], position: Position
    ) -> None:
        """Fill in, among the numbered tensors ``values``, the rows of a call.

        Raises:
            DqarError: A label or a timestep is none of the table's, or not known ahead.
        """
        labels, seen = leaves[self.leaf], memo.seen.get(self.leaf)
        step = self._find_step(position)
        if seen is None or not seen.is_same(labels):
            memo.outputs[0] = (self.find_labels(labels),)
            memo.seen[self.leaf] = SeenTensor.of(labels)
        places = memo.outputs[0][0]
        assert places is not None, "found a few lines above, or at an earlier step"
        for pack in self.packs:
            pack.fill(step, places, values)
        for number, table in self.shared.items():
            values[number] = table[min(step, len(table) - 1)]

    def find_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Find the places of labels in the table; the labels are read on the host.

        Raises:
            DqarError: One is none of the table's.
        """
        asked = labels.tolist()
        strange = set(asked).difference(self.labels)
        if strange:
            raise self._unknown(f"labels {sorted(strange)}", self.labels)
        return torch.tensor([self.labels.index(v) for v in asked], device=labels.device)

    def _find_step(self, position: Position) -> int:
        """Find the place of the timestep of a call in the table."""
        if position.timesteps is None:
            raise self._unknown("a timestep that is not known ahead", self.steps)
        timestep = position.timesteps.values[position.step]
        if timestep not in self.steps:
            raise self._unknown(f"the timestep {timestep}", self.steps)
        return self.steps[timestep]

    def _unknown(self, what: str, known: Collection[float]) -> DqarError:
        return DqarError(
            f"the conditioning's parameters were dropped, and the call has {what}. Expected "
            f"some of {list(known)}; transform the model anew for others"
        )
