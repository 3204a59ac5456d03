"""Guidance: what the unconditional stream of a denoiser does apart from the conditional one.

Its sites may follow a schedule of their own, and its whole output is one more site: at steps
where that reads what was kept, the model is not called for this stream at all.

Source: FasterCache, arXiv 2410.19355, reuses unconditional outputs; there their difference
from the conditional ones is weighted by frequency, here it is kept as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dqar_fx.errors import DqarError, ScheduleError, check_known
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule, as_schedule

from .batch_halves import ORDERS
from .skipped_steps import OUTPUT, resolve_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import nn

    from dqar_fx.schedule.table import Around, BranchTable
    from dqar_fx.steps.stream_key import StreamKey

KEPT = ("output", "difference")


@dataclass(frozen=True)
class Guidance:
    """How the unconditional stream reuses.

    Attributes:
        unconditional: Schedule of its sites, made of the name of a schedule tier if that is
            given; None for that of the conditional stream.
        output: Schedule of its whole output, as one site, likewise; None to call the model at
            each step. Where it reuses or forecasts, the model is not called for this stream.
        keep: What is kept of its output: the ``"output"``, or its ``"difference"`` from the
            conditional one, which reuse adds to this step's conditional output.
        batched: Where both streams are halves of one batch, as they must be then in each
            call, their order: ``"conditional_first"`` (DiT) or ``"unconditional_first"``
            (PixArt, SD3). None where each stream has calls of its own.
        stream: Where it has: its name in ``cache_context``, or the number of its call among
            the nameless calls of a step.

    Raises:
        OptionError: An unknown ``keep`` or ``batched``.
        ScheduleError: What should be a schedule is none, or ``output`` is not for one site.
        DqarError: ``stream`` is neither a name nor a number.

    Source:
        FasterCache, arXiv 2410.19355, "CFG-Cache".
    """

    unconditional: Schedule | None = None
    output: Schedule | None = None
    keep: str = "output"
    batched: str | None = None
    stream: str | int = "uncond"

    if TYPE_CHECKING:  # fields are schedules, and what is given may be the name of one

        def __init__(
            self,
            unconditional: Schedule | str | None = None,
            output: Schedule | str | None = None,
            keep: str = "output",
            batched: str | None = None,
            stream: str | int = "uncond",
        ) -> None: ...

    def __post_init__(self) -> None:
        check_known("guidance keep=", self.keep, KEPT)
        if self.batched is not None:
            alone = ", and None where each stream has calls of its own"
            check_known("guidance batched=", self.batched, ORDERS, note=alone)
        is_number = isinstance(self.stream, int) and not isinstance(self.stream, bool)
        if not isinstance(self.stream, str) and not (is_number and self.stream >= 0):
            raise DqarError(
                f"guidance stream={self.stream!r}: expected the name that cache_context gives "
                "the unconditional stream, or the number of its call in a step, from 0 on"
            )
        self._check_schedules()

    def _check_schedules(self) -> None:
        for name in ("unconditional", "output"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, as_schedule(given, f"guidance {name}="))
        if self.output is None and self.keep != "output":
            raise ScheduleError(
                f"guidance keep={self.keep!r} says what is kept of the unconditional output, "
                "but no schedule keeps it: give output=Schedule..., too"
            )
        if self.output is not None and not self.output.waits_for_run:
            self.output_table()

    def for_run(
        self, num_rows: int, *, calls: Sequence[int] = (), noise: ArrayLike | None = None
    ) -> Guidance:
        """The same guidance with its schedules' number of steps fixed.

        Arguments and errors are those of `Schedule.for_run`.
        """
        own = {name: getattr(self, name) for name in ("unconditional", "output")}
        fixed = {
            name: schedule.for_run(num_rows, calls=calls, noise=noise)
            for name, schedule in own.items()
            if schedule is not None
        }
        return replace(self, **fixed)

    def output_table(self) -> BranchTable | None:
        """The table of the whole output, one column; None where it is never kept.

        Raises:
            ScheduleError: The schedule is for several sites, or `for_run` has not fixed its
                number of steps yet.
        """
        if self.output is None:
            return None
        if self.output.waits_for_run:  # says what to do
            return self.output.resolve((OUTPUT,))
        try:
            return self.output.resolve((OUTPUT,))
        except ScheduleError as error:
            raise ScheduleError(
                "guidance output: the unconditional output is one site, which this schedule "
                f"does not fit: {error}. Give one row, such as "
                "Schedule.from_actions('CRRCRR'), or a rule for any sites, such as "
                "Schedule.interval(...)"
            ) from error

    def check(self, schedule: Schedule, model: nn.Module) -> None:
        """Raise for schedules that do not go with the conditional one, or with the model.

        Raises:
            ScheduleError: Another number of steps, or calibrated on another model.
        """
        for name in ("unconditional", "output"):
            given: Schedule | None = getattr(self, name)
            if given is None:
                continue
            if given.num_steps != schedule.num_steps:
                own, other = (
                    "no number of" if length is None else length
                    for length in (given.num_steps, schedule.num_steps)
                )
                raise ScheduleError(
                    f"guidance {name} is a schedule of {own} steps, but the conditional "
                    f"stream's has {other} steps. Both streams run through one trajectory: "
                    "give all schedules the same num_steps, or none of them one"
                )
            given.refuse_other_model(model)

    @property
    def keeps_difference(self) -> bool:
        """Whether the difference is kept."""
        return self.keep == "difference"

    @property
    def expected(self) -> str:
        """How the unconditional stream is known, where it has calls of its own."""
        if isinstance(self.stream, str):
            return f"calls inside cache_context({self.stream!r})"
        return f"a nameless call number {self.stream}, from 0 on, at each step"

    def describe(self, table: BranchTable, output: BranchTable | None) -> str:
        """In words, given the tables of the unconditional stream's sites and whole output."""
        own = "the same schedule" if self.unconditional is None else "a schedule of its own"
        done = "computed at each step"
        if output is not None:
            letters = "".join(Action(a).letter for a in output.actions[:, 0])
            done = f"{letters}, its {self.keep} kept"
        return (
            f"guidance, {self.batched or self.expected}:\n"
            f"  the unconditional stream's sites: {own}, reuse ratio {table.reuse_ratio:.3f}\n"
            f"  its whole output: {done}"
        )

    def is_unconditional(self, stream: StreamKey) -> bool:
        """Whether a stream that has calls of its own is the unconditional one."""
        name, number, *_ = stream
        if isinstance(self.stream, str):
            return name == self.stream
        return name is None and number == self.stream

    def resolve(self, schedule: Schedule, sites: Sequence[str], around: Around) -> BranchTable:
        """The table of the unconditional stream's sites.

        Args:
            schedule: The schedule of the conditional stream.
            sites: The paths of the sites.
            around: As for `Schedule.resolve`.

        Raises:
            ScheduleError: The schedule does not fit the sites, or reads what is stored at a
                step at which the model is not called.
        """
        own = schedule if self.unconditional is None else self.unconditional
        output = self.output_table()
        if output is None or not output.is_read.any():
            return own.resolve(sites, around)
        skipped = output.is_read[:, 0]
        try:
            return resolve_inside(own, tuple(sites), tuple(around), skipped)
        except ScheduleError as error:
            steps = ", ".join(map(str, np.nonzero(skipped)[0]))
            raise ScheduleError(
                f"the sites of the unconditional stream, which is not called at steps {steps} "
                f"since its whole output is kept: {error}"
            ) from error
