"""Which stream of its run a call is: told by its name, and by what it is conditioned on.

What stays the same from step to step tells streams apart: prompts, labels, positions. Tensors
that have changed at every step so far (residuals of a ControlNet, a second timestep, a prompt
that travels) are data of the step. A prompt that changes otherwise is another prompt, whose
outputs are not kept yet; and so is one that travels, where it alone would tell several streams
apart. Data may be absent at some steps, too: then another program runs the stream, and goes on
with what it has kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dqar_fx.capture.inputs import is_prompt

from .position import Stretch
from .reasons import OTHER_SHAPES, other_conditioning
from .seen import SeenTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from .position import Call
    from .reasons import Reason

MAX_STREAMS = 16
"""Streams of a run that are known at a time; the longest unused goes first."""


@dataclass(eq=False)
class RunStream:
    """One stream of a run.

    Attributes:
        name: From ``cache_context``, or None.
        number: Its place among those of its name, in the order in which they came.
        signature: Which program runs it.
        seen: Its conditioning at its last call.
        first: The step of its first call.
        step: The step of its last call.
        token: Stands for what was kept, until that is not good for it any more.
        transitions: How often it went on to another step.
        changes: Per tensor of the conditioning, at how many of these it changed.
        reason: Why it was not there before, or started anew; None if it began with its run.
        times: Its timesteps at its last call, where its samples stood at different ones.
        held: Which of its samples or tokens stand at a timestep that does not change; None
            where that is not known.
        is_new: Whether it was called once only.
        is_parted: Whether its samples do not go through their steps together.
        names: Per tensor of the conditioning, its argument.
        shapes: Of what it denoises.
    """

    name: str | None
    number: int
    signature: object
    seen: list[SeenTensor]
    first: int
    step: int
    token: Stretch = field(default_factory=Stretch)
    transitions: int = 0
    changes: list[int] = field(default_factory=list)
    reason: Reason | None = None
    times: torch.Tensor | None = None
    held: torch.Tensor | None = None
    is_new: bool = True
    is_parted: bool = False
    names: tuple[str, ...] = ()
    shapes: tuple[object, ...] = ()

    def find_changed(self, call: Call, *, by_value: bool) -> list[int] | None:
        """Which tensors of a call's conditioning are not what they were.

        Args:
            call: The call.
            by_value: Whether to compare values of tensors that are other objects. Those that
                have changed at every step so far are not compared, unless they are prompts.

        Returns:
            Their places; None where the call is of another program, or has other tensors.
        """
        if self.signature != call.signature or len(self.seen) != len(call.conditioning):
            return None
        changed = []
        for i, (seen, tensor) in enumerate(zip(self.seen, call.conditioning, strict=True)):
            if seen.is_same(tensor):
                continue
            is_data = self._has_always_changed(i) and not call.prompts[i]
            if is_data or not (by_value and seen.is_equal(tensor)):
                changed.append(i)
        return changed

    def takes_for_data(self, call: Call, changed: Sequence[int], *, is_sure: bool) -> bool:
        """Whether what has changed may be data of the step, and the stream still be this one.

        At the first step that it goes on to nothing has changed at every step yet; then
        prompts, by their names, do not count as data, and unless it is sure which run this is,
        another tensor must be the very one that it was.
        """
        if any(self.changes[i] != self.transitions for i in changed):
            return False
        if self.transitions:
            return True
        if any(call.prompts[i] for i in changed):
            return False
        kept = (i for i in range(len(self.seen)) if i not in changed)
        return is_sure or any(self.seen[i].is_same(call.conditioning[i]) for i in kept)

    def is_with_other_data(self, call: Call) -> bool:
        """Whether a call of another program is this stream's.

        It denoises as much, maybe in another dtype, and what both have is the same, with a
        prompt among that; data of the step may be there or not.
        """
        own = dict(zip(self.names, self.seen, strict=True))
        given = dict(zip(call.names, call.conditioning, strict=True))
        prompts = dict(zip(call.names, call.prompts, strict=True))
        if self.signature == call.signature or self.shapes != shapes_of(call):
            return False
        others = own.keys() ^ given.keys()
        if any(prompts.get(name) or is_prompt(name) for name in others):
            return False
        return all(
            own[name].agrees(given[name])
            for name in own.keys() & given.keys()
            if prompts[name] or not self._has_always_changed(self.names.index(name))
        ) and any(prompts[name] for name in own.keys() & given.keys())

    def _has_always_changed(self, i: int) -> bool:
        """Whether a tensor of the conditioning has changed at every step so far."""
        return 0 < self.transitions == self.changes[i]

    def with_other_data(self, call: Call) -> RunStream:
        """This stream as a call of another program has it, which goes on with its outputs."""
        changes = dict(zip(self.names, self.changes, strict=True))
        return replace(
            self,
            signature=call.signature,
            seen=[SeenTensor.of(tensor) for tensor in call.conditioning],
            changes=[changes.get(name, self.transitions) for name in call.names],
            names=call.names,
        )

    def go_on(
        self, call: Call, changed: Sequence[int], step: int, *, is_same: bool = False
    ) -> None:
        """Note a call of this stream, whose tensors may be known to be the very same ones."""
        for i, tensor in () if is_same else enumerate(call.conditioning):
            if not self.seen[i].is_same(tensor):
                self.seen[i] = SeenTensor.of(tensor)
        if step != self.step:
            self.transitions += 1
            for i in changed:
                self.changes[i] += 1
        self.step, self.is_new = step, False


class RunStreams:
    """The streams of one run."""

    def __init__(self) -> None:
        self._known: list[RunStream] = []
        self._called: set[RunStream] = set()

    @property
    def are_parted(self) -> bool:
        """Whether samples do not go through their steps together: there may be any number."""
        return any(stream.is_parted for stream in self._known)

    def next_step(self) -> None:
        """Let each stream be called again."""
        self._called.clear()

    def was_called(self, name: str | None) -> bool:
        """Whether a stream of that name was called at this step."""
        return any(stream.name == name for stream in self._called)

    def find(self, name: str | None, call: Call, *, called: bool = False) -> RunStream | None:
        """The stream that has this conditioning, among those called at this step or not."""
        found = self._find_equal(name, call, called=called, by_value=False)
        return found or self._find_equal(name, call, called=called, by_value=True)

    def _find_equal(
        self, name: str | None, call: Call, *, called: bool, by_value: bool
    ) -> RunStream | None:
        for stream in self._known:
            if stream.name != name or (stream in self._called) != called:
                continue
            if stream.find_changed(call, by_value=by_value) == []:
                return stream
        return None

    def knows(self, name: str | None, call: Call) -> bool:
        """Whether any stream has this conditioning."""
        return any(self.find(name, call, called=called) for called in (True, False))

    def choose(
        self, name: str | None, call: Call, step: int, *, is_sure: bool
    ) -> tuple[RunStream, int | None]:
        """The stream of a call, which is noted, and the step of its call before, if any.

        Args:
            name: From ``cache_context``, or None.
            call: The call.
            step: Its step.
            is_sure: Whether it is known that the run is the one of the calls before.
        """
        changed: list[int] = []
        stream = self._find_equal(name, call, called=False, by_value=False)
        is_same = stream is not None
        if stream is None:
            stream = self._find_equal(name, call, called=False, by_value=True)
        if stream is None:
            stream, changed = self._find_nearest(name, call, is_sure=is_sure)
        if stream is None:
            stream = self._find_with_other_data(name, call)
        before = None if stream is None else stream.step
        if stream is None:
            stream = self._begin(name, call, step)
        else:
            stream.go_on(call, changed, step, is_same=is_same)
        self._called.add(stream)
        return stream, before

    def _find_nearest(
        self, name: str | None, call: Call, *, is_sure: bool
    ) -> tuple[RunStream | None, list[int]]:
        """The stream that differs from a call in the least of what may be data of the step."""
        best: tuple[RunStream | None, list[int]] = (None, [])
        for stream in self._known:
            if stream.name != name or stream in self._called:
                continue
            changed = stream.find_changed(call, by_value=True)
            if changed is None or not stream.takes_for_data(call, changed, is_sure=is_sure):
                continue
            if not has_prompt_besides(call, changed) and self._has_other_since(stream):
                continue
            if best[0] is None or (len(changed), -stream.step) < (len(best[1]), -best[0].step):
                best = stream, changed
        return best

    def _find_with_other_data(self, name: str | None, call: Call) -> RunStream | None:
        """The stream that a call goes on with, but for data that it has or lacks."""
        for i, stream in enumerate(self._known):
            if stream.name != name or stream in self._called:
                continue
            if stream.is_with_other_data(call):
                self._known[i] = stream.with_other_data(call)
                return self._known[i]
        return None

    def _has_other_since(self, stream: RunStream) -> bool:
        """Whether another stream of the name was called at a stream's last step, or since."""
        return any(
            other is not stream and other.name == stream.name and other.step >= stream.step
            for other in self._known
        )

    def _begin(self, name: str | None, call: Call, step: int) -> RunStream:
        """A stream that was not there before, or whose prompt is another one now."""
        numbers = {stream.number for stream in self._known if stream.name == name}
        if len(self._known) >= MAX_STREAMS:
            oldest = min(self._known, key=lambda stream: stream.step)
            self._known.remove(oldest)
            number = oldest.number if oldest.name == name else len(numbers)
        else:
            number = next(i for i in range(len(numbers) + 1) if i not in numbers)
        seen = [SeenTensor.of(tensor) for tensor in call.conditioning]
        made = RunStream(
            name,
            number,
            call.signature,
            seen,
            step,
            step,
            changes=[0] * len(seen),
            names=call.names,
            shapes=shapes_of(call),
        )
        self._inherit(made, call)
        self._known.append(made)
        return made

    def _inherit(self, made: RunStream, call: Call) -> None:
        """Say what a new stream differs in from the latest one that was not called."""
        waiting = [s for s in self._known if s.name == made.name and s not in self._called]
        for stream in sorted(waiting, key=lambda stream: -stream.step):
            changed = stream.find_changed(call, by_value=True)
            if changed is None:
                made.reason = made.reason or OTHER_SHAPES
            elif changed:
                names = ", ".join(dict.fromkeys(call.names[i] for i in changed))
                made.reason = other_conditioning(names)
                made.transitions = stream.transitions + 1
                made.changes = [n + (i in changed) for i, n in enumerate(stream.changes)]
                return


def has_prompt_besides(call: Call, changed: Sequence[int]) -> bool:
    """Whether no prompt of a call has changed, or another one has not."""
    is_changed = [i in changed for i, is_prompt in enumerate(call.prompts) if is_prompt]
    return not all(is_changed) or not is_changed


def shapes_of(call: Call) -> tuple[object, ...]:
    """Shapes of what a call denoises."""
    return tuple(latent.shape for latent in call.latents)
