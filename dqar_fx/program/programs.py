"""The programs of a denoiser, by input signature."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Hashable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.inputs import signature_of
from dqar_fx.errors import DqarError

from .dynamic_batch import Batches
from .fitting import count_kept
from .packed_weights import PackedWeights
from .packing_plan import refuse_nothing_packed
from .program import Program
from .recently_used import RecentlyUsed
from .specialised import SpecialisedPrograms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import nn

    from dqar_fx.capture.model_state import ModelState
    from dqar_fx.capture.shared_tensors import SharedTensors
    from dqar_fx.conditioning.release import Residence
    from dqar_fx.schedule.run import RunShape
    from dqar_fx.schedule.schedule import Schedule

    from .compile_options import CompileOptions

MAX_PROGRAMS = 8
"""Input signatures that are kept; the least recently used one goes first."""
MAX_RENEWALS = 3
"""How often one signature is captured anew because a call of it did something else."""


class ProgramBuilder(Protocol):
    """What makes a program for the inputs of a call."""

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
    ) -> Program:
        """Build the program."""

    def with_schedule(self, schedule: Schedule, /) -> ProgramBuilder:
        """The same builder for another schedule."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Put garbage collection off while a program is built.

    A build makes some hundred thousand objects that all live on. Python's collector looks
    through them again and again, finds nothing, and takes a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Programs:
    """Programs by input signature, each built when it is first asked for.

    Args:
        model: The denoiser's fork of the original.
        builder: Makes a program for the inputs of a call.
        options: How to lower.
        residence: Where the conditioning's parameters are.
        shared_tensors: Which of the fork's tensors show one memory.
        model_state: The state that the fork is in, for each of which there are programs.

    Attributes:
        packed_weights: Those that are packed, for all programs.
    """

    def __init__(
        self,
        model: nn.Module,
        builder: ProgramBuilder,
        options: CompileOptions,
        residence: Residence,
        shared_tensors: SharedTensors,
        model_state: ModelState,
    ) -> None:
        self.builder, self.options, self.shared_tensors = builder, options, shared_tensors
        self.model_state, self.packed_weights = model_state, PackedWeights()
        self._batches: dict[int, Batches] = defaultdict(Batches)
        self._model, self._residence = model, residence
        self._known: RecentlyUsed[tuple[int, Hashable], SpecialisedPrograms[Program]] = (
            RecentlyUsed()
        )
        self._renewed = Counter[tuple[int, Hashable]]()
        self._latest: Program | None = None

    def __reduce__(self) -> tuple[type[Programs], tuple[Any, ...]]:
        """Let a copy or a pickle capture anew."""
        given = (self._model, self.builder, self.options, self._residence)
        return Programs, (*given, self.shared_tensors, self.model_state)

    def __iter__(self) -> Iterator[Program]:
        for programs in self._known:
            for program in programs:
                yield program
                yield from program.fitted

    def __len__(self) -> int:
        return sum(len(list(programs)) for programs in self._known)

    @property
    def batches(self) -> Batches:
        """What programs for the state of the model share across batch sizes."""
        return self._batches[self.model_state.number]

    @property
    def latest(self) -> Program:
        """The program that was found last.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        if self._latest is None:
            raise DqarError(
                "nothing has been captured yet: call the denoiser once, or prepare(...) it"
            )
        return self._latest

    def find(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        """The program for these inputs; built if there is none."""
        key = self.model_state.number, signature_of(leaves, spec)
        known = self._of(key)

        def build() -> Program:
            return self._build(leaves, spec, known)

        found = known.find_or_make(leaves, build)
        if found.is_outdated and self._renewed[key] < MAX_RENEWALS:
            self._renewed[key] += 1
            known.forget(found)
            found = known.find_or_make(leaves, build)
        self._latest = found
        return found

    def _of(self, key: tuple[int, Hashable]) -> SpecialisedPrograms[Program]:
        """The programs of a state of the model and an input signature, maybe none yet."""
        bring_back = self._residence.bring_back
        return self._known.find_or_make(
            key, lambda: SpecialisedPrograms(bring_back), MAX_PROGRAMS
        )

    @torch.inference_mode(mode=False)  # or what is kept could not be written to later
    @no_collection()
    def _build(
        self,
        leaves: Sequence[Any],
        spec: pytree.TreeSpec,
        beside: Iterable[Program] = (),
    ) -> Program:
        """Build a program for these inputs; ``beside`` are those for other values of them."""
        self._residence.bring_back()
        self.shared_tensors.tie(self._model)

        def build(leaves: Sequence[Any]) -> Program:
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            return self.builder(self._model, args, kwargs, self.options)

        program = build(leaves)
        for other in beside:  # equal regions are compiled once
            program.lowering.variants = other.lowering.variants
        if self.options.prepack:
            refuse_nothing_packed(program)
            program.lowering.packed_weights = self.packed_weights
        if self.options.dynamic:
            self.batches.join(program, leaves, spec, build)
        if self._residence.place is not None:
            program.attach(self._residence)
        return program

    def lend(self, other: Programs, schedules: Sequence[Schedule]) -> None:
        """Give the programs of other schedules what was captured and compiled.

        Args:
            other: The programs, for the first of the schedules.
            schedules: What the graphs must be able to follow.
        """
        other.model_state.take_over(self.model_state)
        state = self.model_state.number
        for key, program in self._keyed():
            if key[0] != state:
                continue  # the other's fork is of the model as it is now
            sites, around = program.table.sites, program.table.around
            if any(count_kept(each, sites, around) > program.history for each in schedules):
                continue  # its graphs keep fewer steps: captured anew when called
            other._latest = program.with_schedule(schedules[0])
            other._of(key).keep(other._latest)
        other._batches[state], other.packed_weights = self.batches, self.packed_weights
        other.shared_tensors = self.shared_tensors.copy()

    def _keyed(self) -> Iterator[tuple[tuple[int, Hashable], Program]]:
        """Each program that was built, with its state of the model and input signature."""
        for key, programs in self._known.items():
            for program in programs:
                yield key, program

    def fit(self, program: Program, shape: RunShape | None) -> Program:
        """The program whose table is made for a run, which is the latest one then.

        Raises:
            StepError: The table needs to know how long the run is.
            ScheduleError: The schedule is not for such a run.
        """
        self._latest = fitted = program.for_run(shape)
        return fitted

    def forget_session(self, number: int | None) -> None:
        """Forget the streams of a session; None for what has none."""
        self._look_at_inputs_again()
        for program in self:
            program.forget_session(number)

    def _look_at_inputs_again(self) -> None:
        """Let values that forwards read on the host be looked at again."""
        for programs in self._known:
            programs.forget_seen()

    def reset(self) -> None:
        """Start anew: no kept output and no conditioning is used again."""
        if self.shared_tensors.loosen(self._model):
            self._clear()  # their graphs read one of what is equal no longer
        self.model_state.look_again()
        self._look_at_inputs_again()
        for program in self:
            program.reset()

    def forget(self) -> None:
        """Capture and compile anew."""
        self._clear()
        self._batches.clear()
        self.packed_weights = PackedWeights()

    def _clear(self) -> None:
        self._known.clear()
        self._renewed.clear()
        self._latest = None
