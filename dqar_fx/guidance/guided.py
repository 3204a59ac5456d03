"""A denoiser whose unconditional stream has actions of its own.

Both streams run programs over one captured graph and the same lowered regions. Which step it
is is found once per call, from all of its inputs; the unconditional stream is told, so that
steps that it leaves out misnumber nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from torch.utils import _pytree as pytree

from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.notices import Once
from dqar_fx.passes.support.tracing_lock import TRACING
from dqar_fx.program.explanation import Explanation
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.cells import read_rows
from dqar_fx.schedule.run import RunShape
from dqar_fx.schedule.schedule import as_schedule
from dqar_fx.schedule.table import READING
from dqar_fx.steps.stream_key import session_of

from .batch_halves import BatchHalves
from .streams import Streams
from .unconditional import UnconditionalStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from dqar_fx.conditioning.release import Residence
    from dqar_fx.program.compile_options import CompileOptions
    from dqar_fx.program.program import Program
    from dqar_fx.program.programs import ProgramBuilder
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position

    from .guidance import Guidance

    Tensors = Sequence[torch.Tensor]

    class GuidedBuilder(ProgramBuilder, Protocol):
        """What makes a program whose graphs a second schedule may follow as well."""

        def with_schedule(self, schedule: Schedule) -> GuidedBuilder:
            """The same builder for another schedule."""

        @property
        def schedules(self) -> tuple[Schedule, ...]:
            """What its graphs must be able to follow."""

        def with_other(self, other: Schedule | None) -> GuidedBuilder:
            """The same builder with another second schedule."""


@dataclass(frozen=True)
class GuidedExplanation(Explanation):
    """An explanation with a word on guidance."""

    guidance: str = ""

    def _content(self) -> dict[str, Any]:
        return {**super()._content(), "guidance": self.guidance}

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.guidance}"


class GuidedDenoiser(Denoiser):
    """A denoiser that knows which stream is the unconditional one.

    Args:
        model: The original; it is not modified.
        builder: Makes a program for the inputs of a call.
        options: How to lower.
        schedule: The conditional stream's, as the builder has it.
        guidance: What the unconditional stream does.
        residence: Where the conditioning's parameters are.

    Raises:
        ScheduleError: The schedules do not go together, or with the model.
    """

    guidance: Guidance
    _schedule: Schedule

    def __init__(
        self,
        model: nn.Module,
        builder: GuidedBuilder,
        options: CompileOptions,
        schedule: Schedule,
        guidance: Guidance,
        residence: Residence | None = None,
    ) -> None:
        super().__init__(model, builder, options, residence)
        guidance.check(schedule, model)
        self.guidance = guidance
        self._schedule = schedule
        self._others: dict[Program, UnconditionalStream] = {}
        self._streams = defaultdict[int | None, Streams](Streams)
        self._once = Once()

    # ---- as any denoiser -----------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Leave graphs and kept outputs out: a copy captures anew."""
        own: dict[str, Any] = {"_others": {}, "_streams": defaultdict(Streams)}
        return {**super().__getstate__(), **own}

    def reset(self) -> None:
        """Start anew: no kept output and no conditioning is used again."""
        alone = [end for streams in self._streams.values() for end in streams.reset()]
        for other in self._others.values():
            other.reset()
        super().reset()
        for end in alone:
            self._warn_alone(end)

    def _forget_session(self, number: int | None) -> None:
        super()._forget_session(number)
        for other in self._others.values():
            other.forget_session(number)
        streams = self._streams.pop(number, None)
        for end in () if streams is None else streams.reset():
            self._warn_alone(end)

    def _forget_programs(self) -> None:
        super()._forget_programs()
        self._others.clear()

    def with_schedule(
        self, schedule: Schedule | str, *, guidance: Guidance | None = None
    ) -> GuidedDenoiser:
        """Another denoiser for another schedule, or other guidance: same graphs, regions.

        Args:
            schedule: The schedule of the conditional stream, or the name of a schedule tier.
            guidance: What the unconditional one does; None for what it does here.

        Raises:
            ScheduleError: The schedules do not fit the sites or each other, or were
                calibrated on another model.
        """
        schedule = as_schedule(schedule)
        self._refuse_other_model(schedule)
        guidance = self.guidance if guidance is None else guidance
        made = cast("GuidedBuilder", self._programs.builder)  # as it was given
        builder = made.with_schedule(schedule).with_other(guidance.unconditional)
        other = GuidedDenoiser(
            self.model, builder, self._programs.options, schedule, guidance, self._residence
        )
        self._lend(other, builder.schedules)
        return other

    def _reuses(self, table: BranchTable) -> bool:
        output = self.guidance_table
        return super()._reuses(table) or (output is not None and output.reuse_ratio > 0)

    # ---- programs ------------------------------------------------------------------------

    def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        halves = None if self.guidance.batched is None else self._split(leaves, spec)
        return super()._find_program(leaves if halves is None else halves.conditional, spec)

    def _beside(self, program: Program) -> UnconditionalStream:
        """What the unconditional stream has for the signature of a conditional program."""
        found = self._others.get(program)
        if found is not None:
            return found
        with TRACING:
            if program not in self._others:
                known = self._others.items()
                others = {p: other for p, other in known if p in self._programs}
                self._others = {**others, program: self._make_beside(program)}
            return self._others[program]

    def _make_beside(self, program: Program) -> UnconditionalStream:
        guidance, schedule = self.guidance, program.schedule or self._schedule
        if schedule.num_steps is not None:
            run = schedule.run or RunShape(schedule.num_steps)
            guidance = guidance.for_run(run.num_rows, calls=run.calls, noise=run.noise or None)
            self._tell(guidance.unconditional, guidance.output)
        made = UnconditionalStream.of(program, schedule, guidance)
        program.beside.append(made.program)
        return made

    def captured_programs(self) -> list[Program]:
        """The program of each captured signature, then those of the unconditional stream."""
        programs = super().captured_programs()
        others = (self._beside(program).program for program in programs if is_fitted(program))
        return [*programs, *others]

    def _split(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> BatchHalves | None:
        """The halves of a batch; None where a call has none, as with guidance off."""
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        named = self._signature.bind(*args, **kwargs).arguments
        halves = BatchHalves.of(leaves, named, str(self.guidance.batched))
        check = self._streams[self._sessions.current.number].halves
        return halves if halves is not None and check.look(halves) else None

    # ---- a call --------------------------------------------------------------------------

    def _run(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> tuple[Program, list[torch.Tensor]]:
        if self.guidance.batched is None:
            return self._run_alone(leaves, spec)
        halves = self._split(leaves, spec)
        return self._run_batch(leaves, halves, spec)

    def _run_batch(
        self, leaves: Sequence[Any], halves: BatchHalves | None, spec: pytree.TreeSpec
    ) -> tuple[Program, list[torch.Tensor]]:
        """Run both streams of a batch, one after the other; all as one where it has no halves.

        A batch without halves goes on with what the conditional stream has kept.
        """
        conditional = leaves if halves is None else halves.conditional
        find = partial(self._programs.find, conditional, spec)
        found = find()
        position = self._locate(found, conditional)
        found = self._renew(found, position, find)
        streams = self._streams[session_of(position.stream)]
        is_first = position.run is not None and not position.run.calls
        if halves is not None and is_first and not streams.halves.look(halves, again=True):
            return self._run_batch(leaves, None, spec)  # unlike the run before
        if halves is None:
            alone = streams.pair(position.stream, position.trajectory, None)
            position = replace(position, trajectory=alone)
            program = self._fit(found, position)
            return program, program.run(conditional, position)
        beside = found
        if found.captured.reads is not None:  # it may have a mask of its own
            beside = self._programs.find(halves.unconditional, spec)
        other = self._locate(beside, halves.unconditional)
        both = streams.pair(position.stream, position.trajectory, other.trajectory)
        position, other = (replace(each, trajectory=both) for each in (position, other))
        program = self._fit(found, position)
        mine = program.run(conditional, position)
        stream = self._beside(program if beside is found else self._fit(beside, other))
        its = self._run_unconditional(stream, halves.unconditional, other, mine)
        return program, halves.join(mine, its)

    def _run_alone(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> tuple[Program, list[torch.Tensor]]:
        """Run the one stream that this call is of."""
        find = partial(self._programs.find, leaves, spec)
        found = find()
        position = self._locate(found, leaves)
        found = self._renew(found, position, find)
        program = self._fit(found, position)
        other, streams = self._beside(program), self._streams[session_of(position.stream)]
        if self.guidance.is_unconditional(position.stream):
            joined, base = streams.join(position)
            return program, self._run_unconditional(other, leaves, joined, base)
        streams.forget_latest()
        outputs = program.run(leaves, position)
        is_held = other.holds and is_kept(other, position)
        held = other.hold(outputs, session_of(position.stream)) if is_held else ()
        end = streams.note_conditional(position, held)
        if end is not None:
            self._warn_alone(end)
        return program, outputs

    def _run_unconditional(
        self,
        other: UnconditionalStream,
        leaves: Sequence[Any],
        position: Position,
        base: Tensors,
    ) -> list[torch.Tensor]:
        """The unconditional outputs: computed, or what is kept, on top of ``base``."""
        kept = other.whole_output(position.stream)
        if kept is None:
            return other.program.run(leaves, position)
        action, is_cold = kept.action_at(position)
        onto = base if self.guidance.keeps_difference else None
        shapes = [spec.shape for spec in other.outputs]
        if position.computes:
            action, is_cold = Action.COMPUTE, False
        if onto is not None and [value.shape for value in onto] != shapes:
            if action != Action.COMPUTE:
                self._warn_baseless(position)
            return other.program.run(leaves, position)
        if action in READING:
            position.note(other.program, np.array([action], np.int8), 0, kept.table)
            return kept.read(position.step, action, onto)
        outputs = other.program.run(leaves, position)
        if is_cold:
            position.note(other.program, np.array([action], np.int8), 1, kept.table)
        if action == Action.STORE:
            kept.write(position.step, outputs, onto)
        return outputs

    # ---- warnings ------------------------------------------------------------------------

    def _warn_alone(self, end: Position) -> None:
        self._once.warn(
            "guidance: the unconditional stream never came in a trajectory of "
            f"{end.step + 1} steps, whose stream was {end.stream}. Expected "
            f"{self.guidance.expected}. Give the pipeline's own name or number, "
            "Guidance(stream=...); Guidance(batched=...) where both streams are halves of one "
            "batch; or no guidance where there is none",
            key="alone",
        )

    def _warn_baseless(self, position: Position) -> None:
        self._once.warn(
            f"guidance: a difference has nothing to differ from at step {position.step}, so "
            "that the unconditional stream computes: no conditional call of the same step and "
            "shape came before it. Expected the conditional call first; where the pipeline "
            "has the other order, give Guidance(keep='output')",
            key="baseless",
        )

    # ---- inspection ----------------------------------------------------------------------

    @property
    def unconditional(self) -> Program:
        """The unconditional stream's program, for the latest captured signature.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        return self._beside(self.program).program

    @property
    def guidance_table(self) -> BranchTable | None:
        """What is done with the unconditional stream's whole output; None if never kept."""
        return None if self.guidance.output is None else self._beside(self.program).table

    @property
    def cache_bytes(self) -> int:
        """Bytes of both streams' slots and kept output, for the latest captured signature."""
        return super().cache_bytes + self._beside(self.program).cache_bytes

    def explain(self, step: int | None = None) -> Explanation:
        """The same, with guidance and the actions of its unconditional stream."""
        found, table = super().explain(step), self.unconditional.table
        facts = {each.name: getattr(found, each.name) for each in fields(found)}
        steps = range(table.num_steps) if step is None else (step,)
        facts["rows"] += read_rows(table, steps, stream=1)
        said = self.guidance.describe(table, self.guidance_table)
        return GuidedExplanation(**facts, guidance=said)


def is_fitted(program: Program) -> bool:
    """Whether the table of a program is made."""
    return program.schedule is None or not program.schedule.waits_for_run


def is_kept(other: UnconditionalStream, position: Position) -> bool:
    """Whether the unconditional output of a step is stored or read."""
    table = other.table
    return table is not None and table.actions[position.step, 0] != Action.COMPUTE
