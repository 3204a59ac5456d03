"""What the unconditional stream has for one input signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dqar_fx.passes import TensorSpec
from dqar_fx.passes.support.graphs import graph_outputs

from .whole_output import WholeOutput, specs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dqar_fx.program.program import Program
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable

    from .guidance import Guidance

    StreamKey = tuple[str | None, int]


@dataclass
class UnconditionalStream:
    """A program over the conditional one's graph and regions, and what is kept around it.

    Attributes:
        program: With a table of its own.
        outputs: Specs of the flat outputs.
        table: Of the whole output; None if that is never kept.
        holds: Whether to hold conditional outputs until they are needed.
        kept: What the streams that were called have kept.
        held: The outputs of the latest conditional call, at addresses that do not change.
    """

    program: Program
    outputs: tuple[TensorSpec, ...]
    table: BranchTable | None
    holds: bool
    kept: dict[StreamKey, WholeOutput] = field(default_factory=dict)
    held: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, program: Program, schedule: Schedule, guidance: Guidance
    ) -> UnconditionalStream:
        """Beside a conditional program, which has that schedule."""
        sites, around = program.table.sites, program.table.around
        given = graph_outputs(program.captured.gm.graph)
        return cls(
            program.with_table(guidance.resolve(schedule, sites, around)),
            tuple(TensorSpec.of(node.meta["val"]) for node in given),
            guidance.output_table(),
            holds=guidance.keeps_difference and guidance.batched is None,
        )

    def whole_output(self, stream: StreamKey) -> WholeOutput | None:
        """What a stream keeps of its whole output; None if nothing."""
        if self.table is None:
            return None
        if stream not in self.kept:
            self.kept[stream] = WholeOutput(self.table, specs_of(self.table, self.outputs))
        return self.kept[stream]

    def hold(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies of conditional outputs: the caller may write to its own."""
        self.held = self.held or [spec.allocate() for spec in self.outputs]
        for buffer, output in zip(self.held, outputs, strict=True):
            buffer.copy_(output)
        return self.held

    def reset(self) -> None:
        """Forget all kept outputs and streams."""
        self.program.reset()
        self.kept.clear()
        self.held.clear()

    @property
    def cache_bytes(self) -> int:
        """Bytes that one stream takes, what is held for it included."""
        if self.table is None:
            return self.program.cache_bytes
        specs = specs_of(self.table, self.outputs)
        held = self.outputs if self.holds and specs else ()
        return self.program.cache_bytes + sum(s.nbytes for s in (*specs.values(), *held))
