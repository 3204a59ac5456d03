"""Programs of one input signature, told apart by values that their forwards read on the host.

Of most models there is one. A forward that reads masks or lengths of its conditioning is
captured for the values that these have (`dqar_fx.capture.reads`), once for each. Which values
a call has is computed once for the tensors that it is given, and again where they are others
or were written to: once per run and stream; at each call only where torch counts no writes, in
inference mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from dqar_fx.errors import listing
from dqar_fx.notices import warn
from dqar_fx.passes.support.equal_tensors import memory_of, version_of
from dqar_fx.passes.support.tracing_lock import TRACING

from .recently_used import RecentlyUsed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import torch

    from dqar_fx.capture.capture import Capture
    from dqar_fx.capture.reads import Reads

MAX_VALUES = 8
"""Programs of one input signature that are kept; the least recently used one goes first."""
MAX_SEEN = 16
"""Calls of which it is remembered whether they have some values."""


class Captured(Protocol):
    """What is made of a captured graph."""

    @property
    def captured(self) -> Capture:
        """The model as a graph."""


Made = TypeVar("Made", bound=Captured)


@dataclass(frozen=True)
class SeenReads:
    """What was read, and which calls are known to read the same.

    Attributes:
        reads: What it was.
        seen: By identity of what is looked at: that, kept alive, and what was found.
    """

    reads: Reads
    seen: RecentlyUsed[Hashable, tuple[Sequence[torch.Tensor], bool]] = field(
        default_factory=RecentlyUsed
    )

    def hold(self, leaves: Sequence[Any], bring_back: Callable[[], None]) -> bool:
        """Whether a call would read the same."""
        parameters = self.reads.parameters
        given = [*(leaves[i] for i in self.reads.inputs), *parameters]
        versions = tuple(map(version_of, given))
        if None in versions:
            return self._look(leaves, bring_back)
        key = tuple(map(memory_of, given)), versions
        found = self.seen.find(key)
        if found is None:
            found = given, self._look(leaves, bring_back)
            self.seen.keep(key, found, MAX_SEEN)
        return found[1]

    def _look(self, leaves: Sequence[Any], bring_back: Callable[[], None]) -> bool:
        if not self.reads.parameters:
            return self.reads.hold(leaves)
        with TRACING:  # else another thread might release what is read here
            bring_back()
            return self.reads.hold(leaves)


class SpecialisedPrograms(Generic[Made]):
    """The programs of one input signature.

    Args:
        bring_back: Puts parameters back that are away from their device.
    """

    def __init__(self, bring_back: Callable[[], None]) -> None:
        self._bring_back = bring_back
        self._known: RecentlyUsed[int, tuple[SeenReads | None, Made]] = RecentlyUsed()
        self._num_made = 0

    def __iter__(self) -> Iterator[Made]:
        return iter([made for _, made in self._known])

    def find(self, leaves: Sequence[Any]) -> Made | None:
        """What was captured for the values that a call has; None if nothing was."""
        for number, (seen, made) in reversed(self._known.items()):
            if seen is None or seen.hold(leaves, self._bring_back):
                self._known.find(number)  # the latest one then
                return made
        return None

    def find_or_make(self, leaves: Sequence[Any], make: Callable[[], Made]) -> Made:
        """What was captured for the values that a call has, or is captured now."""
        found = self.find(leaves)
        if found is not None:
            return found
        with TRACING:
            found = self.find(leaves)
            if found is None:
                found = make()
                self.keep(found)
            return found

    def keep(self, made: Made) -> None:
        """Let something be found by the values that it was captured for."""
        reads = made.captured.reads
        self._num_made += 1
        self._known.keep(
            self._num_made, (None if reads is None else SeenReads(reads), made), MAX_VALUES
        )
        if reads is not None and self._num_made == MAX_VALUES + 1:
            warn(
                f"captured for {self._num_made} different values of what the forward reads on "
                f"the host, the last time for:{listing(reads.reads)}\nEach takes as long as "
                f"a first call does, and {MAX_VALUES} are kept. Expected a few values that "
                "come again: masks of few lengths, such as prompts that are padded to one "
                "length without a mask"
            )

    def forget(self, made: Made) -> None:
        """Let something be found no longer."""
        for kept in self._known:
            if kept[1] is made:
                self._known.forget(kept)

    def forget_seen(self) -> None:
        """Look at all calls again."""
        for seen, _ in self._known:
            if seen is not None:
                seen.seen.clear()
