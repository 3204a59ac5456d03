"""The thread that calls a denoiser outside of any session, and whether its loop goes on."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from .calling_pipeline import PASSING_ON, is_passing_on

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from .runs import Run

    Calling = tuple[tuple[int, CodeType], ...]

RUNNING_THREADS = ("asyncio", "concurrent", "threading")
"""Packages whose functions go on when what they run is over."""


@dataclass
class Owner:
    """The thread that calls outside of any session.

    Attributes:
        thread: Its identity.
        run: The run that it is in.
        calling: The functions that were running at its calls until its second step, outermost
            first: the last one has the loop.
        frames: Their frames, until its second step: while they are held, no later call of a
            function has the identity of an earlier one.
    """

    thread: int
    run: Run
    calling: Calling
    frames: tuple[FrameType, ...]

    @property
    def is_running(self) -> bool:
        """Whether the loop has not been left yet; after one call any function may have it."""
        now = name_frames(calling_functions(sys._current_frames().get(self.thread)))
        may_have_loop = self.calling if len(self.run.calls) < 2 else self.calling[-1:]
        return not set(may_have_loop).isdisjoint(now)


def is_over(run: Run, num_rows: int) -> bool:
    """Whether a run has come to the end of its last step, as far as that can be known.

    Its last step has as many calls as the one before.
    """
    if run.is_ended or run.last < (run.length or num_rows) - 1:
        return run.is_ended
    calls = Counter(call.step for call in run.calls)
    before = [calls[step] for step in calls if step != run.last]
    return not before or calls[run.last] >= before[-1]


def calling_functions(frame: FrameType | None) -> tuple[FrameType, ...]:
    """The frames of the functions that are running, outermost first.

    Without generators, which come and go, and without what runs threads and tasks.
    """
    found = []
    while frame is not None:
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if not is_generator and not is_passing_on(frame, (*PASSING_ON, *RUNNING_THREADS)):
            found.append(frame)
        frame = frame.f_back
    return tuple(reversed(found))


def name_frames(frames: tuple[FrameType, ...]) -> Calling:
    """What tells frames apart as long as they run, without holding them."""
    return tuple((id(frame), frame.f_code) for frame in frames)


def common_start(
    one: tuple[FrameType, ...], other: tuple[FrameType, ...]
) -> tuple[FrameType, ...]:
    """What two of them have in common at their beginning."""
    pairs = takewhile(lambda pair: pair[0] is pair[1], zip(one, other, strict=False))
    return tuple(each for each, _ in pairs)
