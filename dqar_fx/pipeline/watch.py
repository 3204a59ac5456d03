"""Watches a scheduler: ``set_timesteps`` begins a run, ``step`` ends a step.

The instance that is watched gets a class of its own, a subclass with the same name. Copies and
pickles of it are of the original class, and not watched.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from dqar_fx.steps.scheduler import WATCH, SchedulerWatch

if TYPE_CHECKING:
    from collections.abc import Callable

NOTED: dict[str, Callable[[SchedulerWatch], None]] = {
    "set_timesteps": SchedulerWatch.begin,
    "step": SchedulerWatch.end_step,
}
"""What is noted after a method has returned."""


@cache
def watched_class(original: Any) -> type:
    """The subclass of a scheduler's class that notes its calls."""

    def reduce(self: Any, protocol: Any) -> Any:
        """Make copies and pickles those of the original class."""
        del protocol
        state = {key: value for key, value in self.__dict__.items() if key != WATCH}
        return make_empty, (original,), state

    methods = {name: noted(getattr(original, name), note) for name, note in NOTED.items()}
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    content = {**methods, **names, "__doc__": original.__doc__, "__reduce_ex__": reduce}
    return type(original.__name__, (original,), content)


def make_empty(original: type) -> Any:
    """An instance of a class, whose state is to come."""
    return original.__new__(original)


def noted(method: Callable[..., Any], note: Callable[[SchedulerWatch], None]) -> Any:
    """A method that tells the watch of its instance once it has returned."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        watch = self.__dict__.get(WATCH)
        if watch is not None:
            note(watch)
        return result

    return call


def watch(scheduler: Any) -> None:
    """Watch a scheduler, unless it is watched already."""
    own = scheduler.__dict__
    if WATCH not in own:
        own[WATCH] = SchedulerWatch()
        original: Any = type(scheduler)
        scheduler.__class__ = watched_class(original)
    own[WATCH].watchers += 1


def unwatch(scheduler: Any) -> None:
    """Give a scheduler its own class back, once nobody watches it any more."""
    found = scheduler.__dict__.get(WATCH)
    if found is None:
        return
    found.watchers -= 1
    if found.watchers <= 0:
        del scheduler.__dict__[WATCH]
        scheduler.__class__ = type(scheduler).__bases__[0]
