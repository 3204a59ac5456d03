"""The programs of a denoiser, by input signature."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.adapters import ModelInputs
from dqar_fx.capture.inputs import signature_of
from dqar_fx.capture.offloaded import is_offloaded
from dqar_fx.capture.symbolic import Unfit
from dqar_fx.errors import DqarError
from dqar_fx.notices import warn
from dqar_fx.passes.support.collection import no_collection

from .fitting import count_kept
from .packed_weights import PackedWeights
from .packing_plan import refuse_nothing_packed
from .program import Program
from .recently_used import RecentlyUsed
from .specialised import SpecialisedPrograms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

    from dqar_fx.capture.model_state import ModelState
    from dqar_fx.capture.shared_tensors import SharedTensors
    from dqar_fx.conditioning.release import Residence
    from dqar_fx.passes.support.sizes import Sizes
    from dqar_fx.schedule.run import RunShape
    from dqar_fx.schedule.schedule import Schedule

    from .compile_options import CompileOptions

logger = logging.getLogger(__name__)

MAX_CAPTURES = 8
"""Captures that are kept, for all shapes or for one; the least recently used goes first."""
MAX_PROGRAMS = 64
"""Input signatures that are kept; the least recently used one goes first."""
MAX_RENEWALS = 3
"""How often one signature is captured anew because a call of it did something else."""
MAX_WARM = 8
"""Input signatures for which outputs are kept between steps."""


class ProgramBuilder(Protocol):
    """What makes a program for the inputs of a call."""

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
        *,
        symbolic: bool,
    ) -> Program:
        """Build the program, whose capture is for all shapes if it can be."""

    def with_schedule(self, schedule: Schedule, /) -> ProgramBuilder:
        """The same builder for another schedule."""


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
        self._model, self._residence = model, residence
        self._known: RecentlyUsed[tuple[int, Hashable], SpecialisedPrograms[Program]] = (
            RecentlyUsed()
        )
        self._captures: RecentlyUsed[tuple[int, int], Program] = RecentlyUsed()
        self._warm: RecentlyUsed[int, Program] = RecentlyUsed()
        self._renewed = Counter[tuple[int, Hashable]]()
        self._stamp, self._factor = object(), 1.0
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
    def latest(self) -> Program:
        """The program that was found last.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        if self._latest is None and len(self):
            raise DqarError(
                "the model has been moved since it was captured, and what was captured waits "
                "without weights: call the denoiser once where it is now, or prepare(...) it"
            )
        if self._latest is None:
            raise DqarError(
                "nothing has been captured yet: call the denoiser once, or prepare(...) it"
            )
        return self._latest

    def find(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        """The program for these inputs; built if there is none."""
        key = self.model_state.number, signature_of(leaves, spec)
        known = self._of(key)

        def make() -> Program:
            return self._make(leaves, spec, known)

        found = known.find_or_make(leaves, make)
        if found.is_outdated and self._renewed[key] < MAX_RENEWALS:
            self._renewed[key] += 1
            self._captures.forget(found)
            known.forget(found)
            found = known.find_or_make(leaves, make)
        if not found.follows(self._stamp):
            found = self._follow(found, key, leaves, make)
        if found is not self._latest:
            self._latest = found
            cold = self._warm.keep(id(found), found, MAX_WARM)
            if cold is not None:
                cold.cool()  # its slots would add up with those of all other shapes
        return found

    def _follow(
        self,
        found: Program,
        key: tuple[int, Hashable],
        leaves: Sequence[Any],
        make: Callable[[], Program],
    ) -> Program:
        """A program with the weights of the model; made anew where its graph is for others."""
        if self._residence.is_away:
            self._residence.forget_saved()  # what was saved is written to
        try:
            is_replaced = found.follow(self._given, self._stamp)
        except ValueError as error:
            logger.info("captured anew: %s", error)
            self._clear()
            found = self._of(key).find_or_make(leaves, make)
            is_replaced = found.follow(self._given, self._stamp)
        if is_replaced and len(self.packed_weights):
            self.packed_weights.clear()
            for program in self:
                program.bind_anew()
        return found

    @property
    def _given(self) -> ModelInputs:
        """What the model gives to graphs now."""
        return ModelInputs.of(self._model, self._factor)

    def look_at_weights(self, factor: float | None = None) -> None:
        """Let graphs take weights and scales of the model anew when they are called next.

        Args:
            factor: Of the scales of all adapters; None for the one from before.
        """
        self._stamp = object()
        if factor is not None:
            self._factor = factor

    def _of(self, key: tuple[int, Hashable]) -> SpecialisedPrograms[Program]:
        """The programs of a state of the model and an input signature, maybe none yet."""
        bring_back = self._residence.bring_back
        return self._known.find_or_make(
            key, lambda: SpecialisedPrograms(bring_back), MAX_PROGRAMS
        )

    def _make(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec, beside: Iterable[Program]
    ) -> Program:
        """Make a program for these inputs, of a capture for all shapes if there is one."""
        state = self.model_state.number
        for known, capture in reversed(self._captures.items()):
            symbolic = capture.captured.symbolic
            if symbolic is None or known[0] != state:
                continue
            try:
                sizes = symbolic.sizes_of(leaves, spec)
            except Unfit as reason:
                logger.debug("a capture is not good for a call: %s", reason)
                continue
            self._captures.find(known)  # the latest one then
            return self._at(capture, sizes, leaves)
        program = self._build(leaves, spec, beside)
        gone = self._captures.keep((state, id(program)), program, MAX_CAPTURES)
        if gone is not None:
            for programs in self._known:
                programs.forget(gone)
            warn(
                f"more than {MAX_CAPTURES} kinds of calls take turns, each with a capture of "
                "its own: the one that was not used for longest is forgotten, and captured "
                "again if it comes back. Expected few: calls that differ in sizes alone share "
                "a capture, as far as the forward treats them alike; others differ in which "
                "arguments are given, in dtypes, layouts or numbers among the arguments"
            )
        return program

    @torch.inference_mode(mode=False)
    @no_collection()
    def _at(self, capture: Program, sizes: Sizes, leaves: Sequence[Any]) -> Program:
        """A program of a capture, for other sizes."""
        self._residence.bring_back()
        return capture.at(sizes, leaves)

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
        if not is_offloaded(self._model):
            self.shared_tensors.tie(self._model)

        args, kwargs = pytree.tree_unflatten(leaves, spec)
        symbolic = self._asks_for_all(spec, beside)
        program = self.builder(self._model, args, kwargs, self.options, symbolic=symbolic)
        for other in beside:  # equal regions are compiled once
            program.lowering.variants = other.lowering.variants
        if self.options.prepack:
            refuse_nothing_packed(program)
            program.lowering.packed_weights = self.packed_weights
        if self.options.dynamic and symbolic:
            share_sizes(program, leaves, spec)
        if self._residence.place is not None:
            program.attach(self._residence)
        return program

    def _asks_for_all(self, spec: pytree.TreeSpec, beside: Iterable[Program]) -> bool:
        """Whether a capture is to be for all shapes.

        The first is not, unless it is asked for: with sizes as symbols torch takes several
        times as long.
        """
        if self.options.dynamic is True:
            return True
        state = self.model_state.number
        alike = (
            of == state and capture.captured.in_spec == spec
            for (of, _), capture in self._captures.items()
        )
        return any(alike) and not any(True for _ in beside)

    def lend(self, other: Programs, schedules: Sequence[Schedule]) -> None:
        """Give the programs of other schedules what was captured and compiled.

        Args:
            other: The programs, for the first of the schedules.
            schedules: What the graphs must be able to follow.
        """
        other.model_state.take_over(self.model_state)
        state = self.model_state.number
        made: dict[Program, Program] = {}

        def lend(program: Program) -> Program | None:
            sites, around = program.table.sites, program.table.around
            if any(count_kept(each, sites, around) > program.history for each in schedules):
                return None  # its graphs keep fewer steps: captured anew when called
            if program not in made:
                made[program] = program.with_schedule(schedules[0])
            other._latest = made[program]
            return made[program]

        # the other's fork is of the model as it is now, in this state
        for (of, _), program in self._captures.items():
            if of == state and (lent := lend(program)) is not None:
                other._captures.keep((state, id(lent)), lent, MAX_CAPTURES)
        for key, program in self._keyed():
            if key[0] == state and (lent := lend(program)) is not None:
                other._of(key).keep(lent)
        other.packed_weights = self.packed_weights
        if other._factor == self._factor:
            other._stamp = self._stamp
        other.shared_tensors.take_over(self.shared_tensors)

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

    def loosen(self) -> bool:
        """Capture anew if graphs read one of what is equal no longer; whether they did."""
        is_loosened = self.shared_tensors.loosen(self._model)
        if is_loosened:
            self._clear()
        return is_loosened

    def reset(self) -> None:
        """Start anew: no kept output and no conditioning is used again."""
        if not self._residence.is_away and self.shared_tensors.follow(self._model):
            self.look_at_weights()
        self.loosen()
        self.model_state.look_again()
        self._look_at_inputs_again()
        for program in self:
            program.reset()

    def let_go(self) -> None:
        """Hold no weight, as the model has moved; graphs wait for it to come back.

        A capture is kept longer than the programs of its sizes, the one of its own included.
        """
        self.packed_weights.clear()
        given = self._given
        for program in {*self._captures, *(program for _, program in self._keyed())}:
            program.let_go(given)
        self.look_at_weights()
        self._latest = None

    def forget(self) -> None:
        """Capture and compile anew."""
        self._clear()
        self.packed_weights = PackedWeights()

    def _clear(self) -> None:
        for store in (self._known, self._captures, self._warm, self._renewed):
            store.clear()
        self._latest = None


def share_sizes(program: Program, leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
    """Let what a new program compiles serve all sizes."""
    symbolic = program.captured.symbolic
    if symbolic is not None:
        program.share_regions(symbolic.sizes_of(leaves, spec))
        return
    warn(
        "dynamic: compiled for the sizes of this call alone, and for others anew: the forward "
        "could not be captured with sizes as symbols (the log says why). Expected a model "
        "that computes the same for all sizes; where that cannot be, leave 'dynamic' out"
    )
