"""What is made from graphs, by key: some of it at a time, for threads that ask at a time."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from dqar_fx.passes.support.tracing_lock import TRACING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Key = TypeVar("Key")
Made = TypeVar("Made")


class RecentlyUsed(Generic[Key, Made]):
    """What was made by key; the least recently used one goes first.

    Its own lock is held for moments only: what is there is found while another thread makes
    something. Without it, one thread may see the other's changes half done.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Made] = OrderedDict()
        self._lock = Lock()

    def __iter__(self) -> Iterator[Made]:
        return iter([made for _, made in self.items()])

    def __len__(self) -> int:
        return len(self._known)

    def items(self) -> list[tuple[Key, Made]]:
        """Keys and what was made, as they are now, the least recently used one first."""
        with self._lock:
            return list(self._known.items())

    def find(self, key: Key) -> Made | None:
        """What was made for a key, which is the latest one then; None if nothing is there."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def keep(self, key: Key, made: Made, most: int) -> Made | None:
        """Let something be found, among ``most`` at a time; what is found no longer."""
        with self._lock:
            self._known[key] = made
            self._known.move_to_end(key)
            return self._known.popitem(last=False)[1] if len(self._known) > most else None

    def forget(self, made: Made) -> None:
        """Let something be found no longer."""
        with self._lock:
            for key in [key for key, each in self._known.items() if each is made]:
                del self._known[key]

    def find_or_make(self, key: Key, make: Callable[[], Made], most: int) -> Made:
        """What was made for a key, or is made now, by one thread at a time."""
        found = self.find(key)
        if found is not None:
            return found
        with TRACING:
            found = self.find(key)
            if found is None:
                found = make()
                self.keep(key, found, most)
            return found

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()
