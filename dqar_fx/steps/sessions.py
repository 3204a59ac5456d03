"""Whose request a call belongs to: the open session's, or else the only one's."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from operator import index
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import StepError
from dqar_fx.notices import Once

from .calling_pipeline import CallingPipeline
from .owner import Owner, calling_functions, common_start, is_over, name_frames
from .position import NamedStream
from .scheduler import is_in_run
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    import torch
    from torch import nn

    from .position import Call, Position

MAX_SESSIONS = 64
"""Sessions of one denoiser that may be open at a time; each has slots of its own."""

_OPEN: ContextVar[dict[int, OpenSession]] = ContextVar("dqar_fx_sessions", default={})  # noqa: B039  # never written to


class OpenSession:
    """A session while it is open, and where it was opened.

    Args:
        session: The session.
        frame: The function that opened it; None if it is not to be left open there.
    """

    def __init__(self, session: Session, frame: FrameType | None) -> None:
        self.session = session
        is_generator = frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR
        self._code = frame.f_code if frame is not None and is_generator else None
        self._frame_id = id(frame)
        self._thread = threading.get_ident()

    def refuse_strangers(self) -> None:
        """Raise where a generator that is not running now has left its session open.

        Raises:
            StepError: The call is not made from the generator that opened the session.
        """
        if self._code is None or threading.get_ident() != self._thread:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if id(frame) == self._frame_id and frame.f_code is self._code:
                return
            frame = frame.f_back
        raise StepError(
            f"the session that is open was opened in the generator {self._code.co_name!r} "
            f"({self._code.co_filename}:{self._code.co_firstlineno}), which is not what calls "
            "now: a generator leaves its context to whoever runs next. Expected "
            "session = denoiser.session(), and `with session.turn():` around the calls "
            "between two yields"
        )


class Sessions:
    """The sessions of one denoiser.

    Attributes:
        default: What calls belong to where no session is open.
        scheduler: The one that was attached; None if none was.
        watched: The one of a pipeline that is enabled, which tells when it is in a run.
        timesteps: Those that were attached; None if none were.
    """

    def __init__(self) -> None:
        self._once = Once()
        self.default = Session(None, self._once)
        self.scheduler: Any = None
        self.watched: Any = None
        self.timesteps: torch.Tensor | None = None
        self._numbers = count()
        self._opened: dict[int, Session] = {}
        self._dropped: deque[Session] = deque()
        self._owner: Owner | None = None
        self._claiming = threading.Lock()
        self._pipelines = CallingPipeline()

    def __copy__(self) -> Sessions:
        """What was attached stays so for a copy, which follows calls of its own."""
        other = Sessions()
        self.lend(other)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Sessions:
        """What was attached goes with a copy; a scheduler that is copied, too, as its copy."""
        other = Sessions()
        other.scheduler = memo.get(id(self.scheduler), self.scheduler)
        other.attach_timesteps(self.timesteps)
        return other

    def __reduce__(self) -> tuple[type[Sessions], tuple[()]]:
        """A pickle follows calls of its own; nothing is attached to it."""
        return Sessions, ()

    def __iter__(self) -> Iterator[Session]:
        yield self.default
        yield from list(self._opened.values())

    def lend(self, other: Sessions) -> None:
        """Attach to others what is attached to these."""
        other.scheduler, other.watched = self.scheduler, self.watched
        other.attach_timesteps(self.timesteps)

    def attach_timesteps(self, timesteps: torch.Tensor | None) -> None:
        """Say which timesteps all runs will have."""
        self.timesteps = timesteps
        for session in self:
            session.tracker.timestep_sources.attached = timesteps

    def reset(self) -> None:
        """Let the next call of each session begin a new run."""
        self._owner = None
        for session in self:
            session.reset()

    def reset_current(self) -> None:
        """Let the next call of the session that is open here begin a new run; no other's."""
        session = self.current
        if session is self.default:
            self._owner = None
        session.reset()

    # ---- which one -----------------------------------------------------------------------

    @property
    def current(self) -> Session:
        """The session that is open here, or the default one.

        Raises:
            StepError: It was opened by a generator that is not what calls now.
        """
        opened = _OPEN.get().get(id(self))
        if opened is None:
            return self.default
        opened.refuse_strangers()
        return opened.session

    @property
    def is_only_default(self) -> bool:
        """Whether no session is open anywhere."""
        return not self._opened

    def find_scheduler(self, denoiser: nn.Module) -> Any:
        """The scheduler of the pipeline that calls, or that was attached; else None.

        A copy of a pipeline steps a copy of the scheduler that was attached.
        """
        own = getattr(self._pipelines.find(denoiser), "scheduler", None)
        if own is not None:
            return own
        if self.scheduler is None and is_in_run(self.watched):
            return self.watched
        return self.scheduler

    def locate(self, call: Call, find_scheduler: Callable[[], Any], num_rows: int) -> Position:
        """Find the position of a call in the session that is open here, or the default one.

        Args:
            call: The call.
            find_scheduler: Gives the scheduler whose run it belongs to, or None.
            num_rows: Rows of the branch table.

        Raises:
            StepError: Nothing tells which step it is; or no session is open, and another
                thread is inside of a run.
        """
        session = self.current
        if session is not self.default:
            return session.locate(call, find_scheduler)
        with self._claiming:
            self._claim(num_rows)
            position = session.locate(call, find_scheduler)
            self._own(position, num_rows)
        return position

    def _claim(self, num_rows: int) -> None:
        """Let this thread call, unless another one is in the midst; what that left goes."""
        owner = self._owner
        if owner is None or owner.thread == threading.get_ident():
            return
        run = owner.run
        if not is_over(run, num_rows) and owner.is_running:
            raise StepError(
                "another thread is inside of a run of this denoiser (in "
                f"{owner.calling[-1][1].co_name}, at step {run.last}), whose kept outputs and "
                "steps are not this one's. Expected one request at a time; or, in each "
                "thread, `with denoiser.session():` around its calls; or denoiser.reset() "
                "where that run was given up"
            )
        self.default.reset()
        self._owner = None

    def _own(self, position: Position, num_rows: int) -> None:
        """Note that this thread makes a call of a run; one of one step is over with it."""
        run = position.run
        assert run is not None, "every run is logged"
        owner = self._owner
        if owner is None or owner.run is not run:
            frames = calling_functions(sys._getframe(1))
            held = () if (run.length or num_rows) == 1 else frames
            self._owner = Owner(threading.get_ident(), run, name_frames(frames), held)
        elif owner.frames:
            frames = common_start(owner.frames, calling_functions(sys._getframe(1)))
            has_gone_round = position.step != run.first
            owner.calling, owner.frames = name_frames(frames), () if has_gone_round else frames

    @contextmanager
    def name_stream(
        self, name: str, step_index: int | None, num_steps: int | None
    ) -> Iterator[None]:
        """Name the stream and step of the calls inside, as `Denoiser.cache_context` does.

        Raises:
            StepError: A number is no whole one, or too small.
        """
        step = read_index("step_index", step_index, least=0)
        length = read_index("num_inference_steps", num_steps, least=1)
        tracker = self.current.tracker
        outer, tracker.context = tracker.context, NamedStream(name, step, length)
        try:
            yield
        finally:
            tracker.context = outer

    # ---- opening and closing -------------------------------------------------------------

    def make(self) -> Session:
        """A new session.

        Raises:
            StepError: Too many are open.
        """
        if len(self._opened) >= MAX_SESSIONS:
            raise StepError(
                f"{MAX_SESSIONS} sessions of this denoiser are open, each of which holds "
                "slots: expected that requests that are over close theirs (session.close(), "
                "or the end of `with denoiser.session():`)"
            )
        session = Session(next(self._numbers), self._once)
        session.tracker.timestep_sources.attached = self.timesteps
        self._opened[id(session)] = session
        return session

    def close(self, session: Session) -> None:
        """Forget a session."""
        session.end_run()
        self._opened.pop(id(session), None)

    def drop(self, session: Session) -> None:
        """Note that nobody has a session any more, whenever garbage collection finds that."""
        self._dropped.append(session)

    def take_dropped(self) -> Iterator[Session]:
        """The sessions that are open, but were dropped."""
        while self._dropped:
            session = self._dropped.popleft()
            if self.is_open(session):
                yield session

    def is_open(self, session: Session) -> bool:
        """Whether a session was not closed yet."""
        return id(session) in self._opened

    @contextmanager
    def enter(self, session: Session, frame: FrameType | None) -> Iterator[None]:
        """Let calls inside belong to a session, which a frame's function opens, if any."""
        before, opened = _OPEN.get().get(id(self)), OpenSession(session, frame)
        _OPEN.set({**_OPEN.get(), id(self): opened})
        try:
            yield
        finally:
            left = dict(_OPEN.get())
            if left.get(id(self)) is opened:  # a generator may end after one that began later
                del left[id(self)]
                if before is not None and self.is_open(before.session):
                    left[id(self)] = before
                _OPEN.set(left)


def read_index(name: str, value: Any, least: int) -> int | None:
    """A whole number that was given, or None.

    Raises:
        StepError: It is none, or less than it may be.
    """
    if value is None:
        return None
    try:
        found = index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise StepError(
            f"cache_context(..., {name}={value!r}): expected a whole number, at least {least}"
        )
    return found
