"""The transformed model: the original's forward, with a program behind it."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils import _pytree as pytree

from .batches import Batches
from .drop import drop
from .errors import DqarError, StepError
from .face import Face
from .inputs import signature_of
from .lowering import CompileOptions
from .release import Residence
from .steps import Context, StepTracker
from .ties import Ties, once_per_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from torch import fx, nn

    from .costs import DeviceProfile, Report
    from .explanation import Explanation
    from .memory import MemoryPlan
    from .program import Program
    from .schedule import Schedule
    from .steps import Position
    from .table import BranchTable
    from .weights import ParameterBytes

    class Builder(Protocol):
        """What makes a program for the inputs of a call."""

        def __call__(
            self,
            model: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            options: CompileOptions,
        ) -> Program:
            """The program."""

        def with_schedule(self, schedule: Schedule) -> Builder:
            """The same for another schedule."""


MANY_RESTARTS = 3
"""Trajectories of a single call, in a row, after which something is probably wrong."""
MAX_PROGRAMS = 8
"""Input signatures that are kept; the least recently used one goes first."""


class Denoiser(Face):
    """A denoiser that reuses attention; put it where the original model was.

    Made by `dqar_fx.transform`. It has the original's forward signature, ``config``,
    ``dtype``, ``device`` and ``return_dict`` behaviour, and it owns parameters that share
    their storage with the original's. Inference only: nothing it returns has a gradient.

    Args:
        model: The original; it is not modified.
        builder: Makes a program for the inputs of a call.
        options: How to lower.
        residence: Where the conditioning's parameters are; None to leave them.
    """

    def __init__(
        self,
        model: nn.Module,
        builder: Builder,
        options: CompileOptions,
        residence: Residence | None = None,
    ) -> None:
        super().__init__(model)
        self._ties = Ties(getattr(model, "_orig_mod", model))
        self._residence = Residence() if residence is None else residence
        self._residence.add_model(self.model)
        self._builder = builder
        self._options = options
        self._batches = Batches()
        self._tracker = StepTracker()
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._latest: Program | None = None
        self._warned_short = False
        self._last: dict[tuple[str | None, int], Position] = {}
        self._restarts = 0

    # ---- parameters ----------------------------------------------------------------------

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Denoiser:
        """Move or convert the parameters; graphs are captured anew where that changed them.

        Tensors that are one stay one, and what was released comes back.
        """
        if not self._changes(fn):
            return self
        self._residence.bring_back()
        before = self._placement()
        super()._apply(once_per_memory(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        if before != self._placement():
            self._residence.forget_saved()
            self._forget_programs()
        return self

    def _changes(self, fn: Callable[..., Any]) -> bool:
        """Whether a function of tensors may change them; known only of what was dropped."""
        if self._residence.place != "drop":
            return True
        before = torch.empty(0, dtype=self.dtype, device=self.device)
        after = fn(before)
        return (after.dtype, after.device) != (before.dtype, before.device)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of the denoiser's fork of the model, with what was released."""
        self._residence.bring_back()
        return super().state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without graphs and kept outputs: a copy captures anew."""
        self._residence.bring_back()
        fresh: dict[str, Any] = {"_programs": OrderedDict(), "_latest": None, "_last": {}}
        return {**self.__dict__, **fresh, "_tracker": StepTracker(), "_batches": Batches()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take care of the copy's own parameters."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._residence.add_model(self.model)

    @property
    def parameter_bytes(self) -> ParameterBytes:
        """Bytes of parameters by what they serve, over all captured signatures.

        Raises:
            DqarError: They were dropped.
        """
        merged = self._ties.merged_bytes
        return self._residence.count(self.captured_programs(), self.model, merged)

    @property
    def residence(self) -> Residence:
        """Where the parameters of the conditioning are."""
        return self._residence

    @property
    def released_bytes(self) -> int:
        """Bytes of parameters that are away from their device now."""
        return self._residence.released_bytes

    def drop_conditioning(self, timesteps: torch.Tensor, **labels: Sequence[int]) -> Denoiser:
        """Tabulate fixed labels at fixed timesteps, and drop the parameters for good.

        For class-conditional models whose every call will have some of these labels at some
        of these timesteps, in an input signature that is captured already. The table has a
        row for each label and timestep, so that it pays for few of them only.

        Args:
            timesteps: Of all trajectories, 1-D.
            **labels: Name of the input that holds the labels, and those that it may have, as
                in ``class_labels=[207, 360, 1000]``.

        Raises:
            DqarError: Nothing has been captured yet, the conditioning is not evaluated for
                trajectories, or the table would be larger than the parameters.
            StepError: The timesteps are no 1-D tensor.
            FormatError: The conditioning reads anything else.
        """
        drop(self, self._residence, timesteps, labels)
        return self

    def captured_programs(self) -> list[Program]:
        """The program of each captured signature and kind of stream."""
        return list(self._programs.values())

    # ---- where the loop is ---------------------------------------------------------------

    @contextmanager
    def cache_context(
        self, name: str, step_index: int | None = None, **_: Any
    ) -> Iterator[None]:
        """Name the stream of the calls inside, and their step where it is known.

        Other keywords that diffusers pipelines give (``num_inference_steps``, ``timestep``,
        ``sigma``) are accepted; the branch table does not need them.
        """
        if step_index is not None and step_index < 0:
            raise StepError(f"step_index must not be negative, found {step_index}")
        outer = self._tracker.context
        self._tracker.context = Context(name, step_index)
        try:
            yield
        finally:
            self._tracker.context = outer

    def attach_scheduler(self, scheduler: Any) -> Denoiser:
        """Take the step from a diffusers scheduler's ``step_index``; None detaches.

        Raises:
            StepError: The scheduler does not count its steps.
        """
        if scheduler is not None and not hasattr(scheduler, "step_index"):
            raise StepError(
                f"{type(scheduler).__name__} has no step_index, so it cannot tell the step. "
                "Leave it unattached: the timestep of each call is followed; or call inside "
                "denoiser.cache_context(name, step_index=...)"
            )
        self._tracker.scheduler = scheduler
        self.reset()
        return self

    def attach_timesteps(self, timesteps: torch.Tensor | None) -> Denoiser:
        """Say which timesteps trajectories will have, so that conditioning is evaluated ahead.

        Needed only where the call's timestep is neither an element of a 1-D tensor nor, as it
        is or divided by ``num_train_timesteps``, one of an attached scheduler's. Which step a
        call is does not follow from them, and a call whose timestep has another value than
        theirs at its step is evaluated by itself.

        Args:
            timesteps: One value per step, 1-D, as the calls will have them; None detaches.

        Raises:
            StepError: They are no 1-D tensor.
        """
        if timesteps is not None and not (
            isinstance(timesteps, torch.Tensor) and timesteps.dim() == 1
        ):
            raise StepError(
                f"timesteps: expected a 1-D tensor with a value for each step, found "
                f"{timesteps!r}"
            )
        self._tracker.rulers.attached = timesteps
        self.reset()
        return self

    def reset(self) -> None:
        """Start anew: no kept output and no conditioning is used again."""
        if self._ties.loosen(self.model):
            self._programs.clear()  # their graphs read one of what is equal no longer
            self._latest = None
        self._tracker.reset()
        self._last.clear()
        self._restarts = 0
        for program in self._programs.values():
            program.reset()

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """What diffusers calls at the end of a pipeline."""
        del recurse
        self.reset()

    # ---- lowering ------------------------------------------------------------------------

    def compile(self, *, unit: str = "regional", **keywords: Any) -> None:
        """Compile from the next call on.

        Args:
            unit: ``"regional"`` or ``"whole"``.
            **keywords: Those of ``torch.compile``.

        Raises:
            FormatError: An unknown unit.
        """
        self._options = CompileOptions.of({"unit": unit, **keywords})
        self._forget_programs()

    def with_schedule(self, schedule: Schedule) -> Denoiser:
        """Another denoiser for another schedule: same parameters, graphs, compiled regions.

        Nothing that was captured or compiled is done again, unless the schedule's forecasts
        read more steps than this one's; slots and steps are its own.

        Raises:
            ScheduleError: The schedule does not fit the sites, or was calibrated on another
                model.
        """
        self._refuse_other_model(schedule)
        builder = self._builder.with_schedule(schedule)
        twin = Denoiser(self.model, builder, self._options, self._residence)
        self._lend(twin, schedule)
        return twin

    def _refuse_other_model(self, schedule: Schedule) -> None:
        """Raise if a schedule was calibrated on another model."""
        self._residence.bring_back()
        schedule.refuse_other_model(self.model)

    def _lend(self, twin: Denoiser, schedule: Schedule) -> None:
        """Give another denoiser, of that schedule, what was captured and compiled."""
        for key, program in self._programs.items():
            table = schedule.resolve(program.table.sites, around=program.table.around)
            if twin._count_kept(table) > program.history:
                continue  # its graphs keep fewer steps: captured anew when called
            twin._programs[key] = twin._latest = program.with_table(table)
        twin._batches = self._batches
        twin._tracker.scheduler = self._tracker.scheduler
        twin._tracker.rulers.attached = self._tracker.rulers.attached
        twin._ties = self._ties.copy()

    def _count_kept(self, table: BranchTable) -> int:
        """How many outputs of a site are kept at a time."""
        return table.history

    def compile_repeated_blocks(self, **keywords: Any) -> None:
        """Compile regionally, under the name that diffusers has for it."""
        self.compile(unit="regional", **keywords)

    def prepare(self, *args: Any, **kwargs: Any) -> Program:
        """Capture the signature of a call without running it.

        Raises:
            CaptureError: The model cannot be captured for these inputs.
            SiteError: No attention is found, or a pattern selects none.
            ScheduleError: The schedule does not fit the sites.
        """
        args, kwargs, _ = self._bind_call(args, kwargs)
        return self._find_program(*pytree.tree_flatten((args, kwargs)))

    # ---- a call --------------------------------------------------------------------------

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, as_tuple = self._bind_call(args, kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        refuse_gradients(leaves)
        with torch.inference_mode(mode=False), torch.no_grad():
            program, outputs = self._run(leaves, spec)
        result = pytree.tree_unflatten(outputs, program.captured.out_spec)
        return result.to_tuple() if as_tuple else result

    def _run(
        self, leaves: Sequence[Any], spec: pytree.TreeSpec
    ) -> tuple[Program, list[torch.Tensor]]:
        """One call: the program for its inputs, and the flat outputs."""
        program = self._find_program(leaves, spec)
        return program, program.run(leaves, self._locate(program, leaves))

    def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        """The program for these inputs; built if there is none."""
        key = signature_of(leaves, spec)
        if key in self._programs:
            self._programs.move_to_end(key)
        else:
            self._programs[key] = self._build(leaves, spec)
            if len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)
        self._latest = self._programs[key]
        return self._latest

    def _build(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        """A program for these inputs."""
        self._residence.bring_back()
        self._ties.tie(self.model)

        def build(leaves: Sequence[Any]) -> Program:
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            return self._builder(self.model, args, kwargs, self._options)

        program = build(leaves)
        if self._options.dynamic:
            self._batches.join(program, leaves, spec, build)
        if self._residence.place is not None:
            program.attach(self._residence)
        return program

    def _locate(self, program: Program, leaves: Sequence[Any]) -> Position:
        """Which step this is.

        Raises:
            StepError: It is unknown, or the table has no such step.
        """
        roles, num_steps = program.roles, program.table.num_steps
        timestep = None if roles.timestep is None else leaves[roles.timestep]
        position = self._tracker.locate(
            timestep, leaves[roles.latent], [leaves[i] for i in roles.conditioning]
        )
        if program.ahead.is_wanted and position.ruler is None and timestep is not None:
            ruler = self._tracker.rulers.find(
                timestep, position.step, reads=program.ahead.is_asked
            )
            position = replace(position, ruler=ruler)
        self._watch_restarts(position, program.table)
        length = position.length or position.step + 1
        if position.length is not None and length < num_steps and not self._warned_short:
            self._warned_short = True
            warnings.warn(
                f"the trajectory has {length} steps but the branch table {num_steps}: only "
                "its first rows are used. Transform with a schedule of as many steps as the "
                "pipeline takes (num_inference_steps)",
                stacklevel=6,
            )
        if position.step >= num_steps or (position.step > 0 and length > num_steps + 1):
            self.reset()
            raise StepError(
                f"the trajectory is longer than the branch table: step {position.step} of "
                f"{'at least ' if position.length is None else ''}{length} steps, but the "
                f"table has {num_steps}. Transform with a schedule of as many steps as "
                "the pipeline takes (num_inference_steps)"
            )
        return position

    def _watch_restarts(self, position: Position, table: BranchTable) -> None:
        """Warn where each call begins a trajectory: then nothing is ever reused."""
        last = self._last.get(position.stream)
        self._last[position.stream] = position
        if last is None or position.step > 0 or last.step > 0:
            self._restarts = 0
        elif last.trajectory is not position.trajectory:
            self._restarts += 1
        if self._restarts == MANY_RESTARTS and self._reuses(table):
            warnings.warn(
                f"{MANY_RESTARTS + 1} calls in a row each began a new trajectory, so nothing "
                "is reused. Expected a timestep that falls from call to call, or one latent "
                "for all guidance branches of a step; where that is not so, use "
                "Denoiser.cache_context(name, step_index=...) or attach_scheduler(scheduler)",
                stacklevel=7,
            )

    def _reuses(self, table: BranchTable) -> bool:
        """Whether anything is ever reused."""
        return table.reuse_ratio > 0

    def _forget_programs(self) -> None:
        self._programs.clear()
        self._batches = Batches()
        self._latest = None
        self.reset()

    # ---- inspection ----------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The program of the latest call or `prepare`.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        if self._latest is None:
            raise DqarError(
                "nothing has been captured yet: call the denoiser once, or prepare(...) it"
            )
        return self._latest

    @property
    def table(self) -> BranchTable:
        """The branch table of the latest captured signature."""
        return self.program.table

    @property
    def cache_bytes(self) -> int:
        """Slot bytes of one stream of the latest captured signature."""
        return self.program.cache_bytes

    @property
    def memory(self) -> MemoryPlan:
        """What it holds, by slots, conditioning and parameters, before anything runs.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        from .memory import plan_memory  # imports this module's users

        return plan_memory(self)

    def explain(self, step: int | None = None) -> Explanation:
        """Sites, near misses, passes and actions, for the latest captured signature.

        Args:
            step: Whose actions to explain; None for all.

        Raises:
            DqarError: Nothing has been captured yet.
            StepError: The table has no such step.
        """
        return self.program.explain(step)

    def report(
        self,
        schedule: Schedule | None = None,
        *,
        device: str | torch.device | DeviceProfile | None = None,
    ) -> Report:
        """What rows and a new prompt's trajectory cost, and how long they take by prediction.

        Counted on the graphs of the latest captured signature.

        Args:
            schedule: Another one to look at; None for the denoiser's own.
            device: None to measure the denoiser's own regions where it is, which compiles
                those that are not compiled yet and then takes seconds (compiled whole: its
                operators); a device of this machine to measure operators there, which
                compiles nothing and is rough; ``"A100"``, ``"H100"`` or ``"T4"`` for
                predictions from their datasheets; or a profile measured before.

        Raises:
            DqarError: Nothing has been captured yet, or the device is unknown.
            ScheduleError: The schedule does not fit the sites.
        """
        from .costs.report import report_of  # imports this module's users

        return report_of(self, schedule, device)

    def row_graph(self, step: int) -> fx.GraphModule:
        """The whole step's graph at a step of the table: guards resolved, dead code gone."""
        return self.program.row_graph(step)


def refuse_gradients(leaves: Sequence[Any]) -> None:
    """Raise if a gradient is expected through the call."""
    if torch.is_grad_enabled() and any(
        isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves
    ):
        raise DqarError(
            "an input requires a gradient, but a transformed denoiser is for inference only. "
            "Detach the input, or call the original model"
        )
