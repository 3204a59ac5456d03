"""Plays a program of requests to a denoiser, and checks every call against the truth."""

from __future__ import annotations

import threading
import warnings
from contextlib import ExitStack, nullcontext
from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from dqar_fx import StepError, transform
from dqar_fx.pipeline.watch import watch
from tests.helpers.request_programs import (
    NAMES,
    SCHEDULES,
    WAITING,
    Program,
    Request,
    Round,
    Stream,
)
from tests.helpers.request_truth import (
    REUSE,
    Stand,
    Truth,
    check_call,
    count_travelling,
    join,
    keep,
)
from tests.helpers.tiny_denoiser import TOKENS, WIDTH, make_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx import Denoiser

SCHEDULERS = {"flow": FlowMatchEulerDiscreteScheduler, "ddim": DDIMScheduler}
LOST = "what it had kept was given up, since a call before it failed or did not come"


class Abort(Exception):
    """What a request is given up with."""


class FailAfter(TorchDispatchMode):
    """Fails after a number of operations of torch."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, or fail."""
        self.left -= 1
        if self.left < 0:
            raise Abort
        return func(*args, **(kwargs or {}))


class Stock(DiffusionPipeline):
    """Something that looks like a stock pipeline from the stack."""

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def ask(self, _denoiser, inputs, before):
        """Call the denoiser, as the pipeline's own loop does."""
        before()
        return self.transformer(**inputs)


def ask_alone(denoiser, inputs, before):
    """Call the denoiser where no pipeline is."""
    before()
    return denoiser(**inputs)


@cache
def tiny_model():
    """The model of all programs."""
    return make_tiny()


@cache
def denoisers() -> dict[str, Denoiser]:
    """One denoiser per schedule, all over the same graphs."""
    base = transform(tiny_model(), SCHEDULES["written"])
    for batch in (1, 2):
        for times in ((torch.float32, 1), (torch.int64, 1), (torch.float32, batch)):
            inputs = {
                "hidden_states": torch.zeros(batch, TOKENS, WIDTH),
                "timestep": torch.zeros(times[1], dtype=times[0]),
                "encoder_hidden_states": torch.zeros(batch, TOKENS, WIDTH),
            }
            base.prepare(**inputs)
            if times == (torch.float32, 1):
                residual = torch.zeros(batch, TOKENS, WIDTH)
                base.prepare(**inputs, timestep_r=torch.zeros(1), residual=residual)
    return {name: base.with_schedule(schedule) for name, schedule in SCHEDULES.items()}


def text(prompt: int, batch: int) -> torch.Tensor:
    """A prompt, the same in all samples, as a new object."""
    values = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(prompt))
    return values.repeat(batch, 1, 1)


def play(program: Program) -> int:
    """Play a program; the number of calls that were checked."""
    denoiser = denoisers()[program.schedule]
    denoiser.reset()
    world = World(denoiser, program.schedule in WAITING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in program.rounds:
            world.play(each)
    return world.num_checked


class World:
    """What requests share.

    Args:
        denoiser: The one that all ask.
        is_told_length: Whether its schedule has to be told the length of a run.
    """

    def __init__(self, denoiser: Denoiser, is_told_length: bool) -> None:
        self.denoiser, self.is_told_length = denoiser, is_told_length
        self.truth, self.num_checked = Truth(), 0
        self.prompts: dict[tuple[int, int], torch.Tensor] = {}
        self.latents = {batch: torch.zeros(batch, TOKENS, WIDTH) for batch in (1, 2)}
        self.pipelines: dict[tuple[str, int], Stock] = {}
        self.numbers = count(1)

    def pipeline(self, clock: str, place: int) -> Stock | None:
        """The pipeline whose scheduler is a clock, for the requests at a place of a round."""
        if clock not in SCHEDULERS:
            return None
        if (clock, place) not in self.pipelines:
            self.pipelines[clock, place] = Stock(self.denoiser, SCHEDULERS[clock]())
        return self.pipelines[clock, place]

    def prompt(self, prompt: int, batch: int) -> torch.Tensor:
        """The object that all requests share which have this prompt."""
        if (prompt, batch) not in self.prompts:
            self.prompts[prompt, batch] = text(prompt, batch)
        return self.prompts[prompt, batch]

    def play(self, played: Round) -> None:
        """Play the requests of a round."""
        if played.kind == "alone":
            for request in played.requests:
                self.play_to_end(Player(self, request, self.truth, 0))
            return
        sessions = [self.denoiser.session() for _ in played.requests]
        players = [
            Player(self, request, Truth(), place)
            for place, request in enumerate(played.requests)
        ]
        if played.kind == "turns":
            self.take_turns(sessions, players, played.turns)
        else:
            self.play_in_threads(sessions, players)
        for session in sessions:
            session.close()

    def play_to_end(self, player: Player) -> None:
        """Play one request, which is given up where its spec says so."""
        for _ in player.calls():
            pass

    def take_turns(self, sessions, players, turns) -> None:
        """Let requests go on in turns until all have ended."""
        going = [(s, p.calls()) for s, p in zip(sessions, players, strict=True)]
        order = [*turns, *range(100)]
        while going:
            place = order.pop(0) % len(going)
            session, calls = going[place]
            with session.turn():
                is_over = next(calls, calls) is calls
            if is_over:
                del going[place]

    def play_in_threads(self, sessions, players) -> None:
        """Play each request in a thread of its own."""
        failed = []

        def work(session, player):
            try:
                with session:
                    self.play_to_end(player)
            except BaseException as error:  # raised below
                failed.append(error)

        threads = [
            threading.Thread(target=work, args=pair)
            for pair in zip(sessions, players, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


class Player:
    """Plays one request.

    Args:
        world: What it shares with others.
        request: What to do.
        truth: The truth of its session.
        place: Its place among those that run at a time.
    """

    def __init__(self, world: World, request: Request, truth: Truth, place: int) -> None:
        self.world, self.request, self.truth = world, request, truth
        self.denoiser, self.is_alone = world.denoiser, truth is world.truth
        self.clock = request.clock.removeprefix("watched ")
        self.pipeline = world.pipeline(self.clock, place)
        self.seeds = count(1 if request.repeats else 1000 * next(world.numbers))
        self.own: dict[int, torch.Tensor] = {}  # prompts of its own, by stream
        self.had: dict[tuple[int, int], list[int]] = {}  # prompts, by stream and batch
        self.number, self.executed, self.last_step = 0, -1, None
        self.knows_rows, self.is_hurt, self.has_gap = True, False, False

    # ---- what is passed ------------------------------------------------------------------

    def random(self, batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(next(self.seeds))
        return torch.randn(batch, TOKENS, WIDTH, generator=generator)

    def batch_at(self, step: int) -> int:
        request = self.request
        is_resized = request.resize is not None and step >= request.resize
        return 3 - request.batch if is_resized else request.batch

    def latent_at(self, batch: int, before: torch.Tensor | None) -> torch.Tensor:
        made = self.random(batch)
        if self.request.latents == "shared" and self.is_alone:
            return self.world.latents[batch].copy_(made)
        if self.request.latents != "new" and before is not None and len(before) == batch:
            return before.copy_(made)
        return made

    def value_at(self, step: int) -> float:
        """A timestep that no scheduler gives."""
        request = self.request
        step -= request.equal is not None and 0 < request.equal <= step
        return 100.0 + 100 * step if request.rises else 900.0 - 100 * step

    def times_at(self, step: int, values: torch.Tensor) -> torch.Tensor:
        """The timesteps of a call."""
        request = self.request
        if request.samples == "one":
            time = values[step].reshape(1)
            return time if self.clock != "value" and request.times == "step" else time.clone()
        other = torch.zeros(()) if request.samples == "frames" else values[step] / 3
        return torch.stack([other.to(values.dtype), values[step]])

    def prompt_number(self, place: int, step: int) -> tuple[Stream, int, int]:
        """Whose prompt a stream has at a step: that stream, its place, and its number."""
        request = self.request
        if request.swap is not None and step >= request.swap and len(request.streams) > 1:
            place = 1 - place if place < 2 else place
        stream = request.streams[place]
        number, is_changed = stream.prompt, stream.change is not None and step >= stream.change
        if is_changed:
            number += 10 * (place + 1) + (100 * step if stream.how == "travels" else 0)
        return stream, place, number

    def prompt_at(self, place: int, step: int, batch: int) -> torch.Tensor:
        """The prompt of a stream at a step."""
        stream, place, number = self.prompt_number(place, step)
        if stream.is_renewed:
            return text(number, batch)
        if stream.how == "in place" and stream.change is not None:
            own = self.own.get(place)
            if own is None or len(own) != batch:
                own = self.own[place] = text(number, batch)
            wanted = text(number, batch)
            return own if torch.equal(own, wanted) else own.copy_(wanted)
        return self.world.prompt(number, batch)

    def data_at(self, step: int, batch: int) -> dict[str, torch.Tensor]:
        """A second timestep and a residual."""
        kind = self.request.data
        if kind == "none" or (kind == "ends" and step >= self.request.length // 2):
            return {}
        varied = 0 if kind == "constant" else step - (kind == "mostly" and step >= 2)
        generator = torch.Generator().manual_seed(77 + varied)
        residual = torch.randn(batch, TOKENS, WIDTH, generator=generator)
        return {"timestep_r": torch.full((1,), 50.0 * varied), "residual": residual}

    def mode(self) -> Any:
        """Inference mode, or no gradients."""
        return torch.inference_mode() if self.request.is_inference else torch.no_grad()

    # ---- the loop ------------------------------------------------------------------------

    def calls(self) -> Iterator[None]:
        """Call as the request says; a yield after each call."""
        request = self.request
        with self.mode():
            values = self.set_timesteps()
            latent, reused_time = None, None
        for step in range(request.start, request.length):
            with self.mode():
                batch = self.batch_at(step)
                latent = self.latent_at(batch, latent)
                data = self.data_at(step, batch)
                time = self.times_at(step, values)
            for place, stream in enumerate(request.streams):
                if step in stream.absent:
                    continue
                if self.number == request.stop and request.fails is None:
                    return
                with self.mode():
                    if request.times == "call":
                        time = time.clone()
                    if request.times == "in place":
                        reused_time = time.clone() if reused_time is None else reused_time
                        time = reused_time.copy_(self.times_at(step, values))
                    prompt = self.prompt_at(place, step, batch)
                    inputs = {"hidden_states": latent, "timestep": time}
                    inputs |= {"encoder_hidden_states": prompt, **data}
                    is_made = self.call(step, place, inputs)
                self.number += 1
                if not is_made and not request.retries:
                    return
                yield
            with self.mode():
                self.end_step(step, values, latent)

    def set_timesteps(self) -> torch.Tensor:
        """Begin the run: the timesteps of all its steps."""
        request = self.request
        values = torch.tensor([self.value_at(step) for step in range(request.length)])
        if self.pipeline is None:
            return values
        scheduler = self.pipeline.scheduler
        if request.clock.startswith("watched") and "_dqar_fx_watch" not in vars(scheduler):
            watch(scheduler)
        if self.clock == "flow":
            scheduler.set_timesteps(sigmas=(values / 1000).tolist())
            scheduler.set_begin_index(request.start)
        else:
            scheduler.set_timesteps(request.length)
        return scheduler.timesteps

    def end_step(self, step: int, values: torch.Tensor, latent: torch.Tensor) -> None:
        """What the pipeline's scheduler does at the end of a step."""
        if self.pipeline is not None:
            self.pipeline.scheduler.step(torch.zeros_like(latent), values[step], latent)

    def call(self, step: int, place: int, inputs: dict[str, torch.Tensor]) -> bool:
        """Call once and check; whether the request may go on."""
        request, fails = self.request, self.number == self.request.stop
        self.note_step(step, place, inputs, fails=fails)
        ask = ask_alone if self.pipeline is None else self.pipeline.ask
        with ExitStack() as stack:
            stack.enter_context(self.context(step, place))
            before = partial(self.check_stranger, step, inputs)
            if fails:
                stack.enter_context(FailAfter(request.fails or 0))
            try:
                output = ask(self.denoiser, inputs, before)
            except Abort:
                self.truth.is_hurt = self.is_hurt = True
                return request.retries
            except StepError as error:
                if self.knows_rows or "longer than the branch table" not in str(error):
                    raise
                self.truth.stands = []
                return False
        self.check(step, place, inputs, output)
        return True

    def context(self, step: int, place: int) -> Any:
        """What names the stream and the step."""
        name = self.name_of(place)
        if name is None:
            return nullcontext()
        if self.clock == "index":
            return self.denoiser.cache_context(name, step, self.told_length)
        return self.denoiser.cache_context(name, None, self.told_length)

    @property
    def told_length(self) -> int | None:
        """The length of the run, where ``cache_context`` says it."""
        is_told = self.clock == "index" or (
            self.world.is_told_length and self.request.names != "none"
        )
        return self.request.length if is_told else None

    def name_of(self, place: int) -> str | None:
        """The name of a stream, if it has one."""
        return {"none": None, "one": "x", "own": NAMES[place]}[self.request.names]

    # ---- the truth -----------------------------------------------------------------------

    def note_step(self, step: int, place: int, inputs: dict[str, Any], *, fails: bool) -> None:
        """Note in the truth which call comes."""
        request, truth, timestep = self.request, self.truth, inputs["timestep"]
        prompt = inputs["encoder_hidden_states"].flatten().tolist()
        stream = self.name_of(place), tuple(prompt), "residual" in inputs
        value = float(timestep.max()) + float(timestep.min()) / 1e4  # the greatest tells
        now = {"index": step, "value": value}
        at = float(now.get(self.clock, 0))
        if self.last_step is None:
            made = Stand.at(request.clock, at, self.told_length, stream)
            self.knows_rows = truth.begin(made, has_latent=request.repeats, fails=fails)
        else:
            truth.go_on(at, stream, fails=fails)
        if self.last_step != step:
            self.executed += 1
        gap = self.last_step is not None and step > self.last_step + 1
        self.has_gap = self.last_step is not None and (gap or self.has_gap)
        self.last_step = step
        if self.clock == "place" and self.has_gap:
            self.knows_rows = False
        if self.clock == "value" and self.executed:
            direction = 1 if request.rises else -1
            if -direction in truth.directions and self.has_changes:
                self.knows_rows = False
            truth.directions.add(direction)
        if self.clock == "value" and request.equal is not None:
            is_partial = any(s.absent or s.change is not None for s in request.streams)
            if request.equal == request.start + 1 or (is_partial and step >= request.equal):
                self.knows_rows = False

    @property
    def has_changes(self) -> bool:
        """Whether a step may have what the step before had not."""
        request = self.request
        is_constant = request.swap is None and request.resize is None
        is_constant &= request.data in ("none", "constant")
        return not is_constant or any(
            stream.change is not None or stream.absent for stream in request.streams
        )

    @property
    def is_strict(self) -> bool:
        """Whether nothing may be lost, since all that is needed is known."""
        request = self.request
        prompts = [stream.prompt for stream in request.streams]
        return (
            self.knows_rows
            and not self.is_hurt
            and request.data != "mostly"
            and request.samples != "forcing"
            and (request.names == "own" or len(set(prompts)) == len(prompts))
            and all(stream.change is None or stream.how == "new" for stream in request.streams)
            and not (self.clock == "index" and self.has_gap)
            and (self.clock != "value" or request.data in ("none", "constant"))
        )

    def check(self, step: int, place: int, inputs: dict[str, Any], output: Any) -> None:
        """Check a call that was made."""
        request, denoiser = self.request, self.denoiser
        logged = denoiser.runs[-1].calls[-1]
        row = self.executed if self.clock == "value" else step
        if self.knows_rows:
            assert logged.step == row, f"the row is {logged.step}, not {row}"
            if self.world.is_told_length:
                assert logged.table.num_steps == request.length
        assert logged.stream[0] == self.name_of(place)
        assert logged.reason != LOST or self.truth.is_hurt, "no reason is known"
        _, _, number = self.prompt_number(place, step)
        batch = len(inputs["hidden_states"])
        had = self.had.setdefault((place, batch), [])
        had.append(number)
        key = (self.truth.epoch, self.name_of(place), number, batch)
        kept = self.truth.kept[key]
        if request.samples == "forcing" and self.number:
            assert REUSE not in logged.actions
            kept.clear()
        may_travel = request.names == "own" or len(request.streams) == 1
        num_calls = count_travelling(had) if may_travel else 0
        on_way = self.truth.kept[self.truth.epoch, place, "travels", batch]
        may_read = join(kept, on_way) if num_calls > 2 else kept
        is_strict = self.is_strict and num_calls <= 2
        stored = check_call(
            tiny_model(), inputs, output, logged, may_read, is_strict=is_strict
        )
        keep(kept, logged.step, stored)
        if num_calls > 1:
            keep(on_way, logged.step, stored)
        self.world.num_checked += 1

    def check_stranger(self, step: int, inputs: dict[str, torch.Tensor]) -> None:
        """Let another thread call within this one's run: it must be refused."""
        is_inside = self.number and step < self.request.length - 1 and self.knows_rows
        if self.number != self.request.stranger or not (self.is_alone and is_inside):
            return
        told = []

        def call() -> None:
            try:
                with torch.no_grad():
                    told.append(self.denoiser(**inputs))
            except StepError as error:
                told.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert isinstance(told[0], StepError), "a second thread was let into a run"
        assert "another thread" in str(told[0])
