"""A session of a denoiser: one request's own slots, clock and log."""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from dqar_fx.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from dqar_fx.steps.runs import Run
    from dqar_fx.steps.session import Session
    from dqar_fx.steps.sessions import Sessions


class RequestSession:
    """One request among several to the same denoiser, in threads, tasks or in turns.

    As a context manager it lasts as long as the ``with`` block, in this thread or task.
    Requests that take turns in one thread, as generators do, enter `turn` around the calls of
    each turn, and `close` the session at their end. Graphs, compiled regions and parameters
    are shared with all others.

    Args:
        sessions: Those of the denoiser.
        forget: Returns the memory of a session, by its number.
    """

    def __init__(self, sessions: Sessions, forget: Callable[[int | None], None]) -> None:
        self._sessions, self._forget = sessions, forget
        self._session: Session = sessions.make()
        self._entered: list[AbstractContextManager[None]] = []
        weakref.finalize(self, sessions.drop, self._session).atexit = False

    @property
    def runs(self) -> tuple[Run, ...]:
        """The logs of its latest runs; they stay when it is closed."""
        return tuple(self._session.runs)

    def __enter__(self) -> Self:
        entered = self._enter(sys._getframe(1))
        self._entered.append(entered)
        entered.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)
        if not self._entered:
            self.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let the calls of a ``with`` block belong to this session, which goes on after it."""
        with self._enter(None):  # held by this frame, the session is not dropped in its midst
            yield

    def close(self) -> None:
        """Return its slots; nothing can be called in it any more."""
        if self._sessions.is_open(self._session):
            self._sessions.close(self._session)
            self._forget(self._session.number)

    def _enter(self, frame: Any) -> AbstractContextManager[None]:
        if not self._sessions.is_open(self._session):
            raise StepError(
                "this session is closed: expected denoiser.session() for each new request"
            )
        return self._sessions.enter(self._session, frame)
