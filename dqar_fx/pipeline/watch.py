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
ORIGINAL = "_dqar_fx_original"
"""Attribute of a class of watched schedulers: the class that they had."""


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
    own = {"__doc__": original.__doc__, "__reduce_ex__": reduce, ORIGINAL: original}
    return type(original.__name__, (original,), {**methods, **names, **own})


def make_empty(original: Any) -> Any:
    """An instance of a class, whose state is to come."""
    return object.__new__(original)


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


def is_watchable(scheduler: Any) -> bool:
    """Whether a scheduler has what is to be noted, and its class can be another one."""
    kind = type(scheduler)
    has_methods = all(callable(getattr(kind, name, None)) for name in NOTED)
    return has_methods and hasattr(scheduler, "__dict__")


def watch(scheduler: Any) -> None:
    """Watch a scheduler; once more if it is watched already."""
    own = scheduler.__dict__
    if WATCH not in own:
        scheduler.__class__ = watched_class(original_class(scheduler))
        own[WATCH] = SchedulerWatch()
    own[WATCH].watchers += 1


def unwatch(scheduler: Any) -> None:
    """Give a scheduler its own class back, once nobody watches it any more."""
    own = scheduler.__dict__
    if WATCH in own:
        own[WATCH].watchers -= 1
        if own[WATCH].watchers <= 0:
            del own[WATCH]
    give_class_back(scheduler)


def give_class_back(scheduler: Any) -> None:
    """Give what nobody watches its own class back, if it was made of that of a watched one."""
    if WATCH not in getattr(scheduler, "__dict__", {}) and ORIGINAL in vars(type(scheduler)):
        scheduler.__class__ = original_class(scheduler)


def original_class(scheduler: Any) -> Any:
    """The class of a scheduler, also where it was made of the class of a watched one."""
    return vars(type(scheduler)).get(ORIGINAL, type(scheduler))
