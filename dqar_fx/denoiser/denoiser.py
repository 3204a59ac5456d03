"""The transformed model: the original's forward, with a program behind it."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils import _pytree as pytree

from dqar_fx.capture.compiled import WHY_OPAQUE, must_have_no_break, opaque
from dqar_fx.conditioning.drop import check_fixable, check_size
from dqar_fx.conditioning.memo import Memo
from dqar_fx.errors import DqarError, OptionError
from dqar_fx.notices import Once
from dqar_fx.program.compile_options import CompileOptions
from dqar_fx.program.programs import Programs
from dqar_fx.schedule.schedule import as_schedule

from .step_denoiser import StepDenoiser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx, nn

    from dqar_fx.conditioning.parameter_bytes import ParameterBytes
    from dqar_fx.conditioning.release import Residence
    from dqar_fx.costs.memory import MemoryPlan
    from dqar_fx.costs.profile import DeviceProfile
    from dqar_fx.costs.report import Report
    from dqar_fx.program.explanation import Explanation
    from dqar_fx.program.program import Program
    from dqar_fx.program.programs import ProgramBuilder
    from dqar_fx.schedule.schedule import Schedule
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position

    from .step_denoiser import StepProgram


class Denoiser(StepDenoiser):
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

    _once: Once
    _programs: Programs

    def __init__(
        self,
        model: nn.Module,
        builder: ProgramBuilder,
        options: CompileOptions,
        residence: Residence | None = None,
    ) -> None:
        super().__init__(model, residence)
        self._once = Once()
        self._programs = Programs(
            self.model,
            builder,
            options,
            self._residence,
            self._shared_tensors,
            self._model_state,
        )

    # ---- parameters ----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Leave graphs and kept outputs out: a copy captures anew."""
        return {**super().__getstate__(), "_programs": copy(self._programs)}

    @property
    def parameter_bytes(self) -> ParameterBytes:
        """Bytes of parameters by what they serve, over all captured signatures.

        Raises:
            DqarError: They were dropped.
        """
        self._take_back()
        merged = self._shared_tensors.merged_bytes
        return self._residence.count(self.captured_programs(), self.model, merged)

    @torch.inference_mode(mode=False)  # the table is read in calls outside of it
    def drop_conditioning(self, timesteps: torch.Tensor, **labels: Sequence[int]) -> Denoiser:
        """Tabulate fixed labels at fixed timesteps, and drop the parameters for good.

        For class-conditional models whose every call will have some of these labels at some
        of these timesteps, in an input signature that is captured already. The table has a
        row for each label and timestep, so that it pays for few of them only.

        Args:
            timesteps: The timesteps of all trajectories, 1-D.
            **labels: Name of the input that holds the labels, and those that it may have, as
                in ``class_labels=[207, 360, 1000]``.

        Raises:
            DqarError: Nothing has been captured yet, the conditioning is not evaluated for
                trajectories, or the table would be larger than the parameters.
            StepError: The timesteps are no 1-D tensor.
            OptionError: The conditioning reads anything else.
        """
        self.program.require_whole("drop_conditioning")
        if not self.program.ahead.is_asked:
            raise DqarError(
                "drop_conditioning evaluates it for whole trajectories: expected "
                "transform(..., conditioning='trajectory')"
            )
        if len(labels) != 1:
            raise OptionError(f"expected one input of labels, found {sorted(labels)}")
        self.attach_timesteps(timesteps)
        ((name, given),) = labels.items()
        known = list(dict.fromkeys(int(value) for value in given))
        programs = self.captured_programs()
        leaves = [check_fixable(program, name, known) for program in programs]
        check_size(programs, self.parameter_bytes.released, len(known), len(timesteps))
        for program, leaf in zip(programs, leaves, strict=True):
            program.fix_conditioning(leaf, known, timesteps)
            program.attach(self._residence)
        self._residence.drop()
        return self

    def captured_programs(self) -> list[Program]:
        """The program of each captured signature and kind of stream."""
        return list(self._programs)

    def reset(self) -> None:
        """Start anew: no kept output and no conditioning is used again."""
        self._programs.reset()
        super().reset()

    def _end_run(self) -> None:
        """Forget how far the run has come; and slots, unless recorded graphs write to them."""
        if self._programs.options.backend.replays:
            self._sessions.reset_current()
        else:
            super()._end_run()

    def _forget_session(self, number: int | None) -> None:
        self._programs.forget_session(number)

    # ---- lowering ------------------------------------------------------------------------

    def compile(self, *, unit: str = "regional", **keywords: Any) -> None:
        """Compile regions from the next call on.

        Args:
            unit: ``"regional"`` or ``"whole"``.
            **keywords: Those of ``torch.compile``, ``dynamic`` and ``prepack``, as for
                `transform`.

        Raises:
            OptionError: As `transform` has it for ``compile``.
        """
        disable = self._programs.options.disable
        self._programs.options = CompileOptions.of({"unit": unit, **keywords}, disable)
        self._forget_programs()

    @opaque
    def _note_compiled_caller(self) -> None:
        """Warn once if nothing is compiled, though what calls is.

        Raises:
            DqarError: What calls may not break its graph.
        """
        if must_have_no_break():
            raise DqarError(f"torch.compile(denoiser, fullgraph=True): {WHY_OPAQUE}")
        if not self._programs.options.backend.is_compiled:
            self._once.warn(
                "torch.compile around a denoiser does nothing to it: a denoiser compiles by "
                "itself, and this one runs eagerly, as it was made. To compile it, give "
                "transform(..., compile='regional'), or call denoiser.compile() with the "
                "keywords of torch.compile"
            )

    def with_schedule(self, schedule: Schedule | str) -> Denoiser:
        """Another denoiser for another schedule: same parameters, graphs, compiled regions.

        Nothing that was captured or compiled is done again, unless the schedule's forecasts
        read more steps than this one's; slots and steps are its own.

        Args:
            schedule: The schedule, or the name of a schedule tier.

        Raises:
            ScheduleError: The schedule does not fit the sites, or was calibrated on another
                model.
        """
        schedule = as_schedule(schedule)
        self._refuse_other_model(schedule)
        programs = self._programs
        builder = programs.builder.with_schedule(schedule)
        other = Denoiser(self.model, builder, programs.options, self._residence)
        self._lend(other, (schedule,))
        return other

    def _refuse_other_model(self, schedule: Schedule) -> None:
        """Raise if a schedule was calibrated on another model."""
        self._take_back()
        self._residence.bring_back()
        schedule.refuse_other_model(self.model)

    def _lend(self, other: Denoiser, schedules: Sequence[Schedule]) -> None:
        """Give another denoiser, of these schedules, what was captured and compiled."""
        self._programs.lend(other._programs, schedules)
        self._sessions.lend(other._sessions)

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
        with self._turns:
            args, kwargs, _ = self._bind_call(args, kwargs)
            return self._find_program(*pytree.tree_flatten((args, kwargs)))

    def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Program:
        return self._programs.find(leaves, spec)

    def _fit(self, program: StepProgram, position: Position) -> Program:
        fitted = cast("Program", program)
        if fitted.is_refitted:
            try:
                fitted = self._programs.fit(fitted, position.shape)
            except DqarError:
                self._end_run()  # the next call begins another one, which may say its length
                raise
        super()._fit(fitted, position)
        self._tell(fitted.schedule)
        return fitted

    def _tell(self, *schedules: Schedule | None) -> None:
        """Warn, once, of what is to be told of the schedules that a run follows."""
        for schedule in schedules:
            if schedule is not None and schedule.notice:
                self._once.warn(schedule.notice)

    def _notice_writes(self) -> bool:
        is_written = super()._notice_writes()
        is_loosened = not self._residence.is_away and self._programs.loosen()
        if is_loosened:
            self._weights = None  # what was one is several, of the same values
        return is_written or is_loosened

    def _follow_weights(self, factor: float | None = None) -> None:
        self._programs.look_at_weights(factor)
        for program in self.captured_programs():
            for stream in list(program.streams.values()):
                stream.memo = Memo()

    def _leave_programs(self) -> None:
        self._programs.let_go()
        self.reset()

    def _forget_programs(self) -> None:
        self._programs.forget()
        self.reset()

    # ---- inspection ----------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The program of the latest call or `prepare`.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        return self._programs.latest

    def _find_fitted(self) -> Program:
        """The program of the latest call, whose table is made.

        Raises:
            DqarError: Nothing has been captured yet, or the table waits for a run.
        """
        program = self.program
        if program.schedule is not None and program.schedule.waits_for_run:
            raise DqarError(
                "the schedule has no number of steps, so that its table is made when a run "
                "says how many: run the pipeline once, or look at "
                "denoiser.with_schedule(schedule.for_run(50)).table"
            )
        return program

    @property
    def table(self) -> BranchTable:
        """The branch table of the latest captured signature.

        Raises:
            DqarError: Nothing has been captured yet, or the schedule has no number of steps
                and no run has said how many.
        """
        return self._find_fitted().table

    @property
    def cache_bytes(self) -> int:
        """Slot bytes of one stream of the latest captured signature."""
        return self._find_fitted().cache_bytes

    @property
    def memory(self) -> MemoryPlan:
        """What it holds, by slots, conditioning and parameters, before anything runs.

        Raises:
            DqarError: Nothing has been captured yet.
        """
        from dqar_fx.costs.memory import plan_memory  # imports this module's users

        self._find_fitted()  # raises while nothing tells which slots there are
        return plan_memory(self)

    def explain(self, step: int | None = None) -> Explanation:
        """Sites, near misses, passes and actions, for the latest captured signature.

        Args:
            step: Whose actions to explain; None for all.

        Raises:
            DqarError: Nothing has been captured yet.
            StepError: The table has no such step.
        """
        return (self.program if step is None else self._find_fitted()).explain(step)

    def report(
        self,
        schedule: Schedule | str | None = None,
        *,
        device: str | torch.device | DeviceProfile | None = None,
    ) -> Report:
        """What rows and a new prompt's trajectory cost, and how long they take by prediction.

        Counted on the graphs of the latest captured signature.

        Args:
            schedule: Another one to look at, or the name of a schedule tier; where it has no
                number of steps, in a run as the denoiser's own table is for. None for the
                denoiser's own.
            device: None to measure the denoiser's own regions where it is, which compiles
                those that are not compiled yet and then takes seconds (compiled whole: its
                operators); a device of this machine to measure operators there, which
                compiles nothing and is rough; ``"A100"``, ``"H100"``, ``"H200"`` or ``"T4"``
                for predictions from their datasheets; or a profile measured before.

        Raises:
            DqarError: Nothing has been captured yet, or the device is unknown.
            ScheduleError: The schedule does not fit the sites.
        """
        from dqar_fx.costs.report import report_of  # imports this module's users

        if schedule is None:
            self._find_fitted()  # raises while there is no table to count
        return report_of(self, schedule, device)

    def row_graph(self, step: int) -> fx.GraphModule:
        """The whole step's graph at a step of the table: guards resolved, dead code gone."""
        return self._find_fitted().row_graph(step)
