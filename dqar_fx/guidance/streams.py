"""Streams with calls of their own: which conditional call an unconditional one belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .batch_halves import HalvesCheck

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dqar_fx.steps.position import Position
    from dqar_fx.steps.stream_key import StreamKey

    Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class ConditionalCall:
    """A call of a conditional stream: its position; its outputs, none where not needed."""

    position: Position
    outputs: Tensors


@dataclass
class StreamWatch:
    """A trajectory of a conditional stream, and whether the unconditional one has come."""

    latest: Position
    is_met: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether more than one step has gone by without it."""
        return not self.is_met and self.latest.step > 0


class Streams:
    """Follows the calls of one denoiser, or of one session of it.

    Attributes:
        halves: What looks whether a batch has halves.
    """

    def __init__(self) -> None:
        self.halves = HalvesCheck()
        self._latest: ConditionalCall | None = None
        self._runs: dict[StreamKey, tuple[object, object]] = {}
        self._watches: dict[StreamKey, StreamWatch] = {}
        self._pairs: dict[StreamKey, tuple[object, object, object]] = {}

    def note_conditional(self, position: Position, outputs: Tensors) -> Position | None:
        """Remember a conditional call.

        Returns:
            Where the trajectory before ended, if the unconditional stream never came in it.
        """
        self._latest = ConditionalCall(position, outputs)
        before = self._watches.get(position.stream)
        if before is not None and before.latest.trajectory is position.trajectory:
            before.latest = position
            return None
        self._watches[position.stream] = StreamWatch(position)
        return before.latest if before is not None and before.is_alone else None

    def join(self, position: Position) -> tuple[Position, Tensors]:
        """Where an unconditional call stands, and the conditional outputs of its step.

        Its trajectory ends where the conditional one's does, where that call comes first.
        """
        for watch in self._watches.values():
            watch.is_met = True
        known = self._latest
        if known is None or known.position.step != position.step:
            known = None  # of another step, or not at all
        run = (position.trajectory, None if known is None else known.position.trajectory)
        if self._runs.get(position.stream) != run:
            self._runs[position.stream] = run
        joined = replace(position, trajectory=self._runs[position.stream])
        return joined, () if known is None else known.outputs

    def pair(self, stream: StreamKey, conditional: object, unconditional: object) -> object:
        """What both streams of a batch know their trajectory by.

        It is another one when that of either is; a batch without an unconditional stream goes
        on with the conditional one's.

        Args:
            stream: The conditional stream, or another one without halves.
            conditional: Its trajectory.
            unconditional: The unconditional one's; None if the batch has none.
        """
        before, own, other = self._pairs.get(stream, (None, None, None))
        if own is not conditional:
            other, before = unconditional, object()
        elif other is None or unconditional is None:
            other = other or unconditional
        elif other is not unconditional:
            other, before = unconditional, object()
        self._pairs[stream] = before, conditional, other
        return before

    def forget_latest(self) -> None:
        """No conditional call has come in this step."""
        self._latest = None

    def reset(self) -> list[Position]:
        """Forget all; the ends of trajectories to which no unconditional call came."""
        alone = [watch.latest for watch in self._watches.values() if watch.is_alone]
        self._latest = None
        self._runs.clear()
        self._watches.clear()
        self._pairs.clear()
        return alone
