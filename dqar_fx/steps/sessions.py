"""Whose request a call belongs to: the open session's, or else the only one's."""

from __future__ import annotations

import inspect
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import StepError
from dqar_fx.notices import Once

from .calling_pipeline import CallingPipeline
from .position import NamedStream
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    import torch
    from torch import nn

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
            "session = denoiser.session(), and `with session.turn():` around the calls between "
            "two yields"
        )


class Sessions:
    """The sessions of one denoiser.

    Attributes:
        default: What calls belong to where no session is open.
        scheduler: The one that was attached; None if none was.
        timesteps: Those that were attached; None if none were.
        claiming: Held from a `claim` until the call's run is known.
    """

    def __init__(self) -> None:
        self._once = Once()
        self.default = Session(None, self._once)
        self.scheduler: Any = None
        self.timesteps: torch.Tensor | None = None
        self._numbers = count()
        self._opened: dict[int, Session] = {}
        self._owner: tuple[int, CodeType] | None = None
        self.claiming = threading.Lock()
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
        other.scheduler = self.scheduler
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
        """The scheduler that was attached, or that of the pipeline that calls; else None."""
        if self.scheduler is not None:
            return self.scheduler
        pipeline = self._pipelines.find(denoiser)
        return None if pipeline is None else getattr(pipeline, "scheduler", None)

    def claim(self, caller: Callable[[], CodeType], num_rows: int) -> None:
        """Let this thread call outside of any session, unless another one is in the midst.

        Args:
            caller: Gives the code of the function whose calls these are.
            num_rows: Rows of the branch table.

        Raises:
            StepError: Another thread is inside of a run.
        """
        thread = threading.get_ident()
        if self._owner is not None:
            owner, code = self._owner
            if owner == thread:
                return
            run = self.default.tracker.run
            is_over = run is None or run.is_ended or run.last >= (run.length or num_rows) - 1
            if not is_over and is_running(owner, code):
                raise StepError(
                    "another thread is inside of a run of this denoiser (in "
                    f"{code.co_name}, at step {run.last if run else 0}), whose kept outputs and "
                    "steps are not this one's. Expected one request at a time; or, in each "
                    "thread, `with denoiser.session():` around its calls"
                )
        self._owner = (thread, caller())

    @contextmanager
    def name_stream(
        self, name: str, step_index: int | None, num_steps: int | None
    ) -> Iterator[None]:
        """Name the stream and step of the calls inside, as `Denoiser.cache_context` does."""
        if step_index is not None and step_index < 0:
            raise StepError(f"step_index must not be negative, found {step_index}")
        tracker = self.current.tracker
        outer, tracker.context = tracker.context, NamedStream(name, step_index, num_steps)
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
                f"{MAX_SESSIONS} sessions of this denoiser are open, each of which holds slots: "
                "expected that requests that are over close theirs (session.close(), or the end "
                "of `with denoiser.session():`)"
            )
        session = Session(next(self._numbers), self._once)
        session.tracker.timestep_sources.attached = self.timesteps
        self._opened[id(session)] = session
        return session

    def close(self, session: Session) -> None:
        """Forget a session."""
        session.end_run()
        self._opened.pop(id(session), None)

    def is_open(self, session: Session) -> bool:
        """Whether a session was not closed yet."""
        return id(session) in self._opened

    @contextmanager
    def enter(self, session: Session, frame: FrameType | None) -> Iterator[None]:
        """Let calls inside belong to a session, which the function of a frame opens, if any."""
        before = _OPEN.get()
        _OPEN.set({**before, id(self): OpenSession(session, frame)})
        try:
            yield
        finally:
            left = {key: value for key, value in _OPEN.get().items() if key != id(self)}
            if id(self) in before:
                left[id(self)] = before[id(self)]
            _OPEN.set(left)


def is_running(thread: int, code: CodeType) -> bool:
    """Whether a thread is executing a function now."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False
