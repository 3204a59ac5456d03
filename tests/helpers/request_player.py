"""Plays one request to a denoiser, and checks every call against the truth."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dqar_fx import StepError
from dqar_fx.pipeline.watch import watch
from tests.helpers.request_inputs import Inputs
from tests.helpers.request_programs import NAMES
from tests.helpers.request_truth import (
    REUSE,
    Stand,
    check_call,
    count_travelling,
    join,
    keep,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.request_programs import Request
    from tests.helpers.request_truth import Truth
    from tests.helpers.request_world import World

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


def ask_alone(denoiser, inputs, before):
    """Call the denoiser where no pipeline is."""
    before()
    return denoiser(**inputs)


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
        self.scheduler = None if self.pipeline is None else self.pipeline.scheduler
        if self.clock == "attached":
            self.scheduler = world.attached
        self.inputs = Inputs(request, world.shared, is_alone=self.is_alone)
        self.had: dict[tuple[int, int, bool], list[int]]  # prompts, by stream and kind
        self.had = defaultdict(list)
        self.number, self.executed, self.last_step = 0, -1, None
        self.knows_rows, self.is_hurt, self.has_gap = True, False, False
        self.is_entangled = False

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
                batch = self.inputs.batch_at(step)
                latent = self.inputs.latent_at(batch, latent)
                data = self.inputs.data_at(step, batch)
                time = self.inputs.times_at(step, values)
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
                        time = reused_time.copy_(self.inputs.times_at(step, values))
                    prompt = self.inputs.prompt_at(place, step, batch)
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
        values = torch.tensor([self.inputs.value_at(step) for step in range(request.length)])
        scheduler = self.scheduler
        if scheduler is None:
            return values
        if request.clock.startswith("watched") and "_dqar_fx_watch" not in vars(scheduler):
            watch(scheduler)
        if self.clock == "ddim":
            scheduler.set_timesteps(request.length)
        else:
            scheduler.set_timesteps(sigmas=(values / 1000).tolist())
            if request.tells_start:
                scheduler.set_begin_index(request.start)
        return scheduler.timesteps

    def end_step(self, step: int, values: torch.Tensor, latent: torch.Tensor) -> None:
        """What the scheduler does at the end of a step."""
        if self.scheduler is not None:
            self.scheduler.step(torch.zeros_like(latent), values[step], latent)

    def call(self, step: int, place: int, inputs: dict[str, torch.Tensor]) -> bool:
        """Call once and check; whether the request may go on."""
        request, fails = self.request, self.number == self.request.stop
        self.note_step(step, place, inputs, fails=fails)
        if self.is_entangled and self.world.caller is not self:
            self.had.clear()  # another request came between: it goes on in a run of its own
        self.world.caller = self
        kind = place, len(inputs["hidden_states"]), "residual" in inputs
        self.had[kind].append(self.inputs.prompt_number(place, step)[2])
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
            and not (self.is_hurt or self.is_entangled)
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
        _, _, number = self.inputs.prompt_number(place, step)
        batch = len(inputs["hidden_states"])
        had = self.had[place, batch, "residual" in inputs]
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
            self.world.model, inputs, output, logged, may_read, is_strict=is_strict
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
