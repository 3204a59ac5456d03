"""What may be read: a plain model of requests, streams and steps, which knows each call's own.

Nothing of the package's clock is in it. It knows which request, stream and step each call is,
since the program of calls was written before. Only where no rule could know better it says so:

* With timestep values alone, a request that begins where the one before it, given up, would
  have gone on looks like that one going on: at a timestep further in the same direction, or at
  the same one after the first step. The same holds of ``cache_context(step_index=...)`` with
  the step that is next, or with the same one if the stream was not called at it.
* A prompt that changes at every step so far is data of the step, from the second change on,
  where its stream has a name of its own or is the only one.
* With values alone, two equal first timesteps look like a request that was given up after its
  first step.
* With values alone, of a first and a second timestep that go in the other direction than those
  of a request before, or of two that look like one, with a prompt, residual or size that was
  not there at the first, the second looks like a new request.
* With values alone, a stream that was not called at a step, or has another prompt now, and
  comes first at the next, whose timestep is equal, looks like one that comes late.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch

from tests.helpers.tiny_denoiser import run_with

if TYPE_CHECKING:
    from collections.abc import Hashable

COMPUTE, STORE, REUSE = 0, 1, 2
Kept = dict[int, list[tuple[int, torch.Tensor]]]
"""Per site: steps, and what was stored at them."""


def new_kept() -> Kept:
    """Nothing yet."""
    return defaultdict(list)


@dataclass(frozen=True)
class Stand:
    """Where a clock may stand, as far as it tells one request from the next.

    Attributes:
        clock: Its kind.
        first: Index or timestep that its run began with.
        latest: Index or timestep of the latest call.
        direction: 1 if timesteps rise, -1 if they fall, 0 if there was one only.
        is_first_step: Whether the run is at its first step.
        length: Steps of the run, where the clock was told.
        called: The streams that were called at the latest step.
    """

    clock: str
    first: float
    latest: float
    direction: int
    is_first_step: bool
    length: int | None
    called: frozenset[Hashable]

    @classmethod
    def at(cls, clock: str, now: float, length: int | None, stream: Hashable) -> Stand:
        """Where a clock stands after the first call of a run."""
        return cls(clock, now, now, 0, True, length, frozenset((stream,)))

    def can_go_on(self, other: Stand, *, has_latent: bool) -> bool:
        """Whether the first call of a request may look like one more of this run.

        Args:
            other: Where the clock stands after that call, if it is one of a new run.
            has_latent: Whether its latent may have the values of the latest call's.
        """
        clock, now = self.clock, other.latest
        if clock not in ("index", "value") or (clock, self.length) != (
            other.clock,
            other.length,
        ):
            return False
        if now == self.latest:
            is_again = clock == "value" or other.called <= self.called
            return has_latent or not (self.is_first_step and is_again)
        if clock == "index":
            return now == self.latest + 1
        if now == self.first:
            return False
        return self.direction in (0, 1 if now > self.latest else -1)

    def after(self, now: float, stream: Hashable) -> Stand:
        """Where it stands after another call of the run."""
        direction = self.direction or (now > self.latest) - (now < self.latest)
        is_same_step = now == self.latest
        called = self.called | {stream} if is_same_step else frozenset((stream,))
        is_first_step = self.is_first_step and is_same_step
        return replace(
            self, latest=now, direction=direction, is_first_step=is_first_step, called=called
        )


@dataclass
class Truth:
    """What was stored in one session, and what may be read.

    Attributes:
        epoch: Number of the request, or of the first of several that cannot be told apart.
        stands: Where the clock may stand; more than one after a call that failed.
        kept: Per request and stream, and per site: steps, and what was stored at them.
        is_hurt: Whether a call failed in it.
        directions: In which timesteps went, or seemed to go, where their values told the time.
    """

    epoch: int = 0
    stands: list[Stand] = field(default_factory=list)
    kept: dict[Hashable, Kept] = field(default_factory=lambda: defaultdict(new_kept))
    is_hurt: bool = False
    directions: set[int] = field(default_factory=set)

    def begin(self, made: Stand, *, has_latent: bool, fails: bool) -> bool:
        """Begin a request at its first call; whether it is certain that a clock can tell.

        Args:
            made: Where the clock stands after that call, if it can.
            has_latent: Whether its latent may have the values of the latest call's.
            fails: Whether it may fail before the clock has seen it.
        """
        alike = [
            stand for stand in self.stands if stand.can_go_on(made, has_latent=has_latent)
        ]
        if made.clock == "value":
            turns = {
                (made.latest > stand.latest) - (made.latest < stand.latest) for stand in alike
            }
            self.directions |= turns - {0}
        is_certain = not alike
        self.epoch += is_certain
        before = [] if is_certain and not fails else self.stands
        self.stands = [*before, made]
        return is_certain

    def go_on(self, now: float, stream: Hashable, *, fails: bool) -> None:
        """Note another call of the request."""
        before = self.stands if fails else []
        self.stands = [*before, *(stand.after(now, stream) for stand in self.stands)]


def source_of(actions: Any, row: int, site: int) -> int:
    """The row whose output a reuse reads, by the table."""
    return next(i for i in range(row - 1, -1, -1) if actions[i, site] == STORE)


def check_call(
    tiny: Any,
    inputs: dict[str, Any],
    output: torch.Tensor,
    logged: Any,
    kept: Kept,
    *,
    is_strict: bool,
) -> dict[int, torch.Tensor]:
    """Check one call against what was kept of its stream; what it stores, by site.

    Args:
        tiny: The model.
        inputs: The call's.
        output: What the denoiser gave.
        logged: What its log says of the call.
        kept: What may be read.
        is_strict: Whether nothing may be lost for any reason.
    """
    table, done, row = logged.table.actions, logged.actions.tolist(), logged.step
    choices, lost = {}, []
    for site, action in enumerate(done):
        if table[row, site] != REUSE:
            assert action == table[row, site] or (logged.why and action == COMPUTE)
            continue
        source = source_of(table, row, site)
        good = [value for step, value in reversed(kept[site]) if source <= step < row]
        if action == REUSE:
            assert good, f"site {site} read what is not of this stream, at row {row}"
            choices[site] = good
        else:
            lost.append(site)
            assert logged.reason, (
                f"site {site} did not reuse at row {row}, and no reason is given"
            )
            assert not (good and is_strict), f"row {row}, site {site} is lost: {logged.reason}"
    for replaced in product(*choices.values()):
        expected, computed = run_with(tiny, inputs, dict(zip(choices, replaced, strict=True)))
        if torch.equal(expected, output):
            break
    else:
        raise AssertionError(f"row {row} read a stale value: {done}")
    assert logged.num_cold == len([site for site in lost if done[site] == STORE])
    return {site: computed[site] for site, action in enumerate(done) if action == STORE}


def keep(kept: Kept, row: int, stored: dict[int, torch.Tensor]) -> None:
    """Note what a call has stored."""
    for site, value in stored.items():
        kept[site].append((row, value))


def join(one: Kept, other: Kept) -> Kept:
    """What is in either."""
    joined = new_kept()
    for each in (one, other):
        for site, values in each.items():
            joined[site] += values
    return joined


def count_travelling(had: list[int]) -> int:
    """At how many of a stream's calls its prompt has travelled; 0 if it stopped and changed.

    Args:
        had: Which prompt it had at each call.
    """
    pairs = list(pairwise(had))
    changes = [one != other for one, other in pairs]
    num_first = changes.index(False) if False in changes else len(changes)
    return 0 if any(changes[num_first:]) else num_first + 1
