"""Random programs of requests to a denoiser: what is called, in which order, what fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from dqar_fx import Schedule

MOST_STEPS, PROMPTS, NAMES = 6, 3, ("cond", "uncond", "perturbed")
TOLD = ("flow", "watched flow", "ddim", "watched ddim", "place")
SURE = (*TOLD, "index")
CLOCKS = (*SURE, "value")
SCHEDULES = {
    "written": Schedule.from_actions(["SRRSRSRRRSRR", "CSRRRSRRSRRR"]),
    "often": Schedule.from_actions(["SRSRSRSRSRSR", "SRRRRRRRRRRR"]),
    "interval": Schedule.interval(every=2),
    "linear": Schedule.linear(),
}
KINDS = ("alone", "turns", "threads", "entangled")
WAITING = ("interval", "linear")


@dataclass(frozen=True)
class Stream:
    """One of the calls of each step.

    Attributes:
        prompt: Number of its prompt.
        is_renewed: Whether each call has another object with the prompt's values.
        change: The step at which it becomes another prompt; None for never.
        how: ``"new"`` object, written ``"in place"``, or ``"travels"``: another at each step.
        absent: Steps at which it is not called.
    """

    prompt: int
    is_renewed: bool = False
    change: int | None = None
    how: str = "new"
    absent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """One run of a denoising loop.

    Attributes:
        clock: What tells its steps, one of `CLOCKS`.
        length: Steps of the whole run.
        start: The first of them that is taken.
        streams: What is called at each step, in this order.
        names: ``"own"``, ``"one"`` for all, or ``"none"``.
        swap: The step from which on the first two streams have each other's prompts, or None.
        batch: Samples at first.
        resize: The step from which on there is one sample instead of two, or the reverse.
        data: Second timestep and residual: ``"none"``, ``"fresh"`` at each step,
            ``"constant"``, ``"mostly"``: fresh but for one step, or ``"ends"``: fresh at some
            first steps only.
        samples: Timesteps of the samples: ``"one"``, ``"frames"`` (one of two stands still),
            or ``"forcing"`` (each its own).
        equal: The step whose timestep is that of the step before, or None.
        rises: Whether timesteps rise.
        times: How timesteps are made: ``"step"`` (one tensor per step), ``"call"`` (one per
            call), or ``"in place"``.
        latents: ``"new"`` at each step, written ``"in place"``, or ``"shared"``: in place in
            the same tensor that other requests have.
        is_inference: Whether it runs in inference mode.
        stop: The number of the call before which it is given up; None for never.
        fails: The number of operations after which that call fails; None if it is not made.
        retries: Whether it goes on after a call that failed.
        repeats: Whether it has the latents of all other requests that do so.
        stranger: The number of the call during which another thread calls, or None.
        tells_start: Whether its scheduler is told at which step it starts.
    """

    clock: str = "flow"
    length: int = 4
    start: int = 0
    streams: tuple[Stream, ...] = (Stream(0),)
    names: str = "none"
    swap: int | None = None
    batch: int = 1
    resize: int | None = None
    data: str = "none"
    samples: str = "one"
    equal: int | None = None
    rises: bool = False
    times: str = "step"
    latents: str = "new"
    is_inference: bool = False
    stop: int | None = None
    fails: int | None = None
    retries: bool = False
    repeats: bool = False
    stranger: int | None = None
    tells_start: bool = True


@dataclass(frozen=True)
class Round:
    """Requests that run at a time.

    Attributes:
        kind: ``"alone"``: one after the other; ``"turns"``: in sessions of one thread;
            ``"threads"``: each in a thread and a session of its own; ``"entangled"``: in turns
            without sessions, which is told only by clocks that know a run from another.
        requests: They.
        turns: Whose call is next, as numbers modulo those that go on.
    """

    kind: str
    requests: tuple[Request, ...]
    turns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """Rounds of requests to one denoiser with one of `SCHEDULES`."""

    schedule: str
    rounds: tuple[Round, ...]


def settle(request: Request, schedule: str) -> Request:
    """A request without what cannot be together."""
    clock, changes = request.clock, {}
    if clock in ("flow", "watched flow", "attached") and not request.tells_start:
        changes |= {"equal": None, "samples": "one"}  # it is found by the first timestep
    if clock.startswith(("flow", "watched", "attached")):
        changes["rises"] = False
    if clock.endswith("ddim"):
        changes |= {"equal": None, "data": "none", "rises": False, "samples": "one"}
    if clock == "place":
        changes |= {"samples": "one", "is_inference": False}  # else no element is known
    if clock == "index" or (clock == "value" and schedule in WAITING):
        changes["names"] = "one" if request.names == "none" else request.names
    if changes.get("samples", request.samples) != "one":
        changes |= {"batch": 2, "resize": None, "data": "none", "equal": None}
    if clock == "place":
        changes |= {"times": "step", "length": max(request.length, 2)}
        if request.length <= 2:
            changes["equal"] = None
    streams = request.streams
    travelling = [s for s in streams if s.change is not None and s.how == "travels"]
    if travelling:
        changes["swap"] = None
        if request.names != "own":  # a new stream cannot be told from one whose prompt travels
            changes["streams"] = tuple(
                replace(s, absent=(), change=s.change if s is travelling[0] else None)
                for s in streams
            )
    return replace(request, start=min(request.start, request.length - 1), **changes)


def rarely(values: st.SearchStrategy) -> st.SearchStrategy:
    """None, or a value."""
    return st.none() | st.none() | values


STEPS = st.integers(0, MOST_STEPS - 1)
STREAMS = st.builds(
    Stream,
    prompt=st.integers(0, PROMPTS - 1),
    is_renewed=st.booleans(),
    change=rarely(STEPS),
    how=st.sampled_from(["new", "in place", "travels"]),
    absent=st.just(()) | st.just(()) | st.lists(STEPS, max_size=3, unique=True).map(tuple),
)
CALLS = st.integers(0, 3 * MOST_STEPS)


@st.composite
def requests(draw, clocks=CLOCKS, most_streams=3):
    """Any request."""
    return Request(
        clock=draw(st.sampled_from(clocks)),
        length=draw(st.integers(1, MOST_STEPS)),
        start=draw(st.just(0) | STEPS),
        streams=tuple(draw(st.lists(STREAMS, min_size=1, max_size=most_streams))),
        names=draw(st.sampled_from(["none", "own", "one"])),
        swap=draw(rarely(STEPS)),
        batch=draw(st.integers(1, 2)),
        resize=draw(rarely(STEPS)),
        data=draw(st.sampled_from(["none", "none", "fresh", "constant", "mostly", "ends"])),
        samples=draw(st.sampled_from(["one", "one", "one", "one", "frames", "forcing"])),
        equal=draw(rarely(STEPS)),
        rises=draw(st.booleans()),
        times=draw(st.sampled_from(["step", "call", "in place"])),
        latents=draw(st.sampled_from(["new", "in place", "shared"])),
        is_inference=draw(st.booleans()),
        stop=draw(rarely(CALLS)),
        fails=draw(rarely(st.integers(0, 40))),
        retries=draw(st.booleans()),
        repeats=draw(st.booleans()),
        stranger=draw(rarely(CALLS)),
        tells_start=draw(st.booleans()),
    )


@st.composite
def programs(draw, clocks=CLOCKS, kinds=KINDS, most_streams=3):
    """Any program."""
    schedule = draw(st.sampled_from(list(SCHEDULES)))
    if kinds == ("alone",) and draw(st.integers(0, 7)) == 7:
        clocks = ("attached",)
    rounds = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        known = TOLD if kind == "entangled" else clocks
        drawn = draw(st.lists(requests(known, most_streams), min_size=1, max_size=3))
        takes_turns = kind in ("turns", "entangled")
        turns = draw(st.lists(st.integers(0, 5), max_size=12)) if takes_turns else ()
        settled = tuple(settle(request, schedule) for request in drawn)
        rounds.append(Round(kind, settled, tuple(turns)))
    return Program(schedule, tuple(rounds))
