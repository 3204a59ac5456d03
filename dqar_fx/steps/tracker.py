"""Which step of which run a call is, and which stream: known on the host.

In this order: ``cache_context(name, step_index=...)`` where it is given; the scheduler of the
pipeline that calls, or that was attached; the timestep's place in a 1-D tensor that it is an
element of, as in ``for t in timesteps``; and only then the timestep's value. Of values,
another one is the next step, and so is the same one with another latent, unless the call can
be another stream of the same step. The direction in which they go is learnt. Only a return to
the first value, or a turn, begins a new run.

What no clock can know: with values alone, a request that begins, with the same prompts, where
one that was given up would have gone on, is taken for that one. The same holds of step indices
of ``cache_context``. Give such requests a session each, or reset the denoiser between them.

A scheduler that stays where it is while timesteps go on does not tell the time: then it is not
listened to any more in that run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from dqar_fx.errors import StepError
from dqar_fx.notices import Once

from .position import Call, NamedStream, Position, Stretch
from .reasons import MIXED, Reason, absent, joined, late
from .runs import Run
from .samples import is_on_host, move_together
from .scheduler import SchedulerReader, SchedulerRun
from .seen import SeenTensor
from .streams import RunStream, RunStreams
from .timesteps import Timesteps, TimestepSources, range_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .timesteps import Range


@dataclass(slots=True)
class Reading:
    """What the clock says of one call.

    Attributes:
        clock: Which clock it is, see `Run`.
        token: What it knows the run by; None where it does not.
        index: The step, where it tells it.
        length: Steps of the run, where it tells them.
        timesteps: Those that the call's is an element of.
    """

    clock: str
    token: object = None
    index: int | None = None
    length: int | None = None
    timesteps: Timesteps | None = None

    @classmethod
    def of_place(cls, timesteps: Timesteps, index: int) -> Reading:
        """What a timestep says that is an element of timesteps."""
        return cls("place", timesteps, index, len(timesteps.values), timesteps)


@dataclass
class Moment:
    """How far a run has come.

    Attributes:
        run: Its log.
        step: Its step.
        index: What the clock said at the latest call.
        scheduler_run: The run of the scheduler, where there is one.
        timestep: The timestep of the latest call, where a scheduler tells the time; it may be
            written to since.
        times: What its values were.
        latents: What was denoised in it; empty where the clock does not ask.
        first: The timesteps of its first step, where their values tell the time.
        latest: Those of its latest step.
        direction: 1 where they rise, -1 where they fall, 0 where that is not known yet.
        streams: Its streams.
    """

    run: Run
    step: int
    index: int | None
    scheduler_run: SchedulerRun | None = None
    timestep: torch.Tensor | None = None
    times: torch.Tensor | None = None
    latents: tuple[SeenTensor, ...] = ()
    first: Range | None = None
    latest: Range | None = None
    direction: int = 0
    streams: RunStreams = field(default_factory=RunStreams)


class StepTracker:
    """Follows the calls of one denoiser, or of one session of it.

    Attributes:
        timestep_sources: Where the timesteps of a whole run are found.

    Args:
        session: The number of the session, where it is one's.
        once: What warns of each thing once.
    """

    def __init__(self, session: int | None = None, once: Once | None = None) -> None:
        self._local = threading.local()
        self.timestep_sources = TimestepSources()
        self._session = () if session is None else (session,)
        self._once = once or Once()
        self._now: Moment | None = None
        self._direction = 0
        self._reader: SchedulerReader | None = None
        self._unheeded: SchedulerRun | None = None

    @property
    def context(self) -> NamedStream | None:
        """What ``cache_context`` has named, in this thread, while it is open."""
        return getattr(self._local, "context", None)

    @context.setter
    def context(self, named: NamedStream | None) -> None:
        self._local.context = named

    @property
    def run(self) -> Run | None:
        """The log of the run that goes on, or that came last."""
        return None if self._now is None else self._now.run

    def reset(self) -> None:
        """Forget the run: the next call starts a new one."""
        self._now = self._reader = self._unheeded = None
        self._direction = 0
        self.timestep_sources.forget()

    def locate(self, call: Call, find_scheduler: Callable[[], Any]) -> Position:
        """Find the position of a call.

        Args:
            call: The call.
            find_scheduler: Gives the scheduler whose run it belongs to; None where none is
                known. It is not asked while a run goes on by the places of timesteps.

        Raises:
            StepError: Nothing tells which step this is.
        """
        named = self.context
        name = None if named is None else named.name
        going_on = self._go_on_by_place(call.timestep)
        if going_on is not None and (named is None or named.step_index is None):
            reading = going_on
        else:
            scheduler = None if going_on is not None else find_scheduler()
            reading = self._read(call.timestep, scheduler)
        if self._stands_still(reading, name, call):
            self._unheeded = cast("SchedulerRun", reading.token)
            reading = self._read(call.timestep, self._unheeded.scheduler)
            self._change_clock(reading)
        now = self._go_to(reading, name, call)
        is_sure = reading.clock != "value"
        stream, before = now.streams.choose(name, call, now.step, is_sure=is_sure)
        # a step that was told is taken as it is where to look would be to wait
        may_look = reading.clock != "step_index" or is_on_host(call.timestep)
        is_mixed = may_look and not move_together(stream, call.timestep)
        if is_mixed:
            stream.token = Stretch()  # what was kept belongs to other steps of its samples
        return Position(
            trajectory=stream.token,
            stream=(name, stream.number, *self._session),
            step=now.step,
            length=now.run.length,
            timesteps=reading.timesteps if reading.index == now.step else None,
            scheduler_run=now.scheduler_run,
            run=now.run,
            reason=MIXED if is_mixed else reason_of(stream, before, now),
            computes=is_mixed,
        )

    # ---- clocks --------------------------------------------------------------------------

    def _read(self, timestep: Any, scheduler: Any) -> Reading:
        """What the best clock says that there is."""
        told = self._read_scheduler(timestep, scheduler)
        named = self.context
        if named is not None and named.step_index is not None:
            known = None if told is None else told.length
            return Reading("step_index", None, named.step_index, named.num_steps or known)
        if told is not None:
            return told
        if not isinstance(timestep, torch.Tensor):
            raise StepError(
                f"no step is known for this call: its timestep is {timestep!r}, expected a "
                "tensor. Pass the timestep as a tensor, call inside "
                "denoiser.cache_context(name, step_index=...), or attach_scheduler(scheduler)"
            )
        place = self.timestep_sources.read_base(timestep)
        if place is None:
            known = None if self._unheeded is None else len(self._unheeded.timesteps)
            return Reading(
                "value", length=known if named is None else named.num_steps or known
            )
        return Reading.of_place(*place)

    def _go_on_by_place(self, timestep: Any) -> Reading | None:
        """What a timestep says that is at the latest place of its tensor, or at the next.

        None where places do not tell the time, or it is elsewhere.
        """
        now = self._now
        if now is None or now.run.clock != "place" or not isinstance(timestep, torch.Tensor):
            return None
        found = self.timestep_sources.read_base(timestep)
        if found is None or found[0] is not now.run.token or now.index is None:
            return None
        return Reading.of_place(*found) if found[1] - now.index in (0, 1) else None

    def _read_scheduler(self, timestep: Any, scheduler: Any) -> Reading | None:
        self.timestep_sources.scheduler = scheduler
        if scheduler is None:
            return None
        if self._reader is None or self._reader.scheduler is not scheduler:
            self._reader = SchedulerReader(scheduler)
        found = self._reader.read(timestep)
        if found is None or found[0] is self._unheeded:
            return None
        run, index = found
        timesteps = None
        if isinstance(timestep, torch.Tensor):
            place = self.timestep_sources.read_base(timestep)
            timesteps = place[0] if place is not None and place[1] == index else None
        return Reading("scheduler", run, index, len(run.timesteps), timesteps)

    def _stands_still(self, reading: Reading, name: str | None, call: Call) -> bool:
        """Whether a scheduler stays where it is while the timesteps of a stream go on."""
        now = self._now
        if now is None or reading.clock != "scheduler" or reading.index != now.index:
            return False
        if now.run.token is not reading.token or now.times is None:
            return False
        again = now.streams.find(name, call, called=True)
        return again is not None and not torch.equal(now.times, call.timestep)

    def _change_clock(self, reading: Reading) -> None:
        """Let another clock tell the time from the call before on."""
        now = self._now
        assert now is not None, "a call came before"
        assert now.timestep is not None, "it had a timestep"
        assert now.times is not None, "it had a timestep"
        place = self.timestep_sources.read_base(now.timestep)
        now.run.clock, now.run.token = reading.clock, reading.token
        now.index = None if place is None else place[1]
        now.first = now.latest = range_of(now.times)

    # ---- runs and steps ------------------------------------------------------------------

    def _go_to(self, reading: Reading, name: str | None, call: Call) -> Moment:
        """Go to the step of a call, in the same run or in a new one."""
        found = range_of(call.timestep) if reading.clock == "value" else None
        now = self._now
        steps = None if now is None else self._count_steps(now, reading, found, name, call)
        if now is None or steps is None:
            first = reading.index or 0
            run = Run(reading.clock, first, reading.length, reading.token, self._once)
            self._now = now = Moment(run, first, reading.index, first=found, latest=found)
            is_told = isinstance(reading.token, SchedulerRun)
            now.scheduler_run = (
                cast("SchedulerRun", reading.token) if is_told else self._unheeded
            )
            if now.scheduler_run is not None:
                run.num_solver_steps = now.scheduler_run.num_solver_steps
        elif steps:
            if found is not None and now.latest is not None and found != now.latest:
                now.direction = 1 if found > now.latest else -1
                self._direction = now.direction
            now.latest = found
            now.step += steps
            now.streams.next_step()
        now.index = reading.index
        if reading.clock != "scheduler":
            now.latents = tuple([SeenTensor.of(latent) for latent in call.latents])
        elif isinstance(call.timestep, torch.Tensor):
            now.timestep, now.times = call.timestep, call.timestep.clone()
        return now

    def _count_steps(
        self, now: Moment, reading: Reading, found: Range | None, name: str | None, call: Call
    ) -> int | None:
        """How many steps a call is after the one before it; None if it begins a new run."""
        if now.run.clock != reading.clock or now.run.token is not reading.token:
            return None
        if None not in (reading.length, now.run.length) and reading.length != now.run.length:
            return None
        if found is not None:
            steps = self._count_by_value(now, found, name, call)
            is_last = now.step + 1 == now.run.length and not now.streams.are_parted
            return None if steps == 1 and is_last else steps
        assert reading.index is not None, "other clocks tell the step"
        moved = reading.index - (now.index or 0)
        if reading.clock == "scheduler":
            return moved if moved >= 0 else None
        if moved == 0:
            if now.step != now.run.first or is_same(now.latents, call):
                return 0  # without a look at the conditioning, which may be a wait
            return 0 if now.streams.find(name, call, called=True) is None else None
        if reading.clock == "place":
            return min(moved, 1) if moved > 0 else None  # a loop over a slice of them
        return 1 if moved == 1 else None

    def _count_by_value(
        self, now: Moment, found: Range, name: str | None, call: Call
    ) -> int | None:
        if now.latest is None or now.first is None:
            return None
        if found == now.latest:
            return self._count_at_same_value(now, name, call)
        if found == now.first:
            return None
        turn = 1 if found > now.latest else -1
        if now.direction:
            return 1 if turn == now.direction else None
        if turn != -self._direction or now.streams.knows(name, call):
            return 1
        self._direction = 0  # should they go on like this, it was no new run
        return None

    def _count_at_same_value(self, now: Moment, name: str | None, call: Call) -> int | None:
        """Steps to a call at the same timestep: another stream, a next step, or a new run."""
        if is_same(now.latents, call) or now.streams.find(name, call) is not None:
            return 0
        if name is not None and not now.streams.was_called(name):
            return 0
        again = now.streams.find(name, call, called=True) is not None
        if not again and all(
            seen.is_equal(latent)
            for seen, latent in zip(now.latents, call.latents, strict=False)
        ):
            return 0
        return None if now.step == now.run.first else 1


def is_same(latents: tuple[SeenTensor, ...], call: Call) -> bool:
    """Whether a call denoises the very tensors that the call before it did."""
    return len(latents) == len(call.latents) and all(
        seen.is_same(latent)
        or (seen.version is None and seen.tensor is latent and seen.is_equal(latent))
        for seen, latent in zip(latents, call.latents, strict=True)
    )


def reason_of(stream: RunStream, before: int | None, now: Moment) -> Reason | None:
    """Why something may not be kept at a step of a stream; None if nothing is unusual.

    Args:
        stream: The stream.
        before: The step of its call before; None if it had none.
        now: How far its run has come.
    """
    if before is not None and now.step > before + 1:
        return absent(before + 1, now.step - 1)
    if stream.reason is not None:
        return stream.reason
    if stream.first > now.run.first:
        return joined(stream.first)
    return late(now.run.first) if now.run.first else None
