"""Plays programs of requests, alone, in turns and in threads."""

from __future__ import annotations

import threading
import warnings
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from dqar_fx import transform
from tests.helpers.request_inputs import Shared
from tests.helpers.request_player import Player
from tests.helpers.request_programs import SCHEDULES, WAITING
from tests.helpers.request_truth import Truth
from tests.helpers.tiny_denoiser import TOKENS, WIDTH, make_tiny

if TYPE_CHECKING:
    from dqar_fx import Denoiser
    from tests.helpers.request_programs import Program, Round

SCHEDULERS = {"flow": FlowMatchEulerDiscreteScheduler, "ddim": DDIMScheduler}


class Stock(DiffusionPipeline):
    """Something that looks like a stock pipeline from the stack."""

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def ask(self, _denoiser, inputs, before):
        """Call the denoiser, as the pipeline's own loop does."""
        before()
        return self.transformer(**inputs)


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


def play(program: Program) -> int:
    """Play a program; the number of calls that were checked."""
    denoiser = denoisers()[program.schedule]
    world = World(denoiser, program.schedule in WAITING)
    clocks = {request.clock for played in program.rounds for request in played.requests}
    denoiser.attach_scheduler(world.attached if "attached" in clocks else None)
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
        self.model, self.shared = tiny_model(), Shared()
        self.truth, self.num_checked = Truth(), 0
        self.caller: Player | None = None
        self.attached = FlowMatchEulerDiscreteScheduler()
        self.pipelines: dict[tuple[str, int], Stock] = {}

    def pipeline(self, clock: str, place: int) -> Stock | None:
        """The pipeline whose scheduler is a clock, for the requests at a place of a round."""
        if clock not in SCHEDULERS:
            return None
        if (clock, place) not in self.pipelines:
            self.pipelines[clock, place] = Stock(self.denoiser, SCHEDULERS[clock]())
        return self.pipelines[clock, place]

    def play(self, played: Round) -> None:
        """Play the requests of a round."""
        if played.kind == "alone":
            for request in played.requests:
                self.play_to_end(Player(self, request, self.truth, 0))
            return
        players = [
            Player(self, request, Truth(), place)
            for place, request in enumerate(played.requests)
        ]
        if played.kind == "entangled":
            self.take_turns([None] * len(players), players, played.turns)
            return
        sessions = [self.denoiser.session() for _ in players]
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
        going = [(s, p, p.calls()) for s, p in zip(sessions, players, strict=True)]
        order = [*turns, *range(100)]
        while going:
            place = order.pop(0) % len(going)
            session, player, calls = going[place]
            player.is_entangled = session is None
            with nullcontext() if session is None else session.turn():
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
            except BaseException as error:
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
