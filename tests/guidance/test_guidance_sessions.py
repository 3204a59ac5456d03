"""Guidance in sessions, and batches whose halves come and go in a run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import dqar_fx
from dqar_fx import Action, Guidance, Schedule
from tests.helpers.requests import STEPS, are_equal, finish, prompt, request, run
from tests.helpers.toy_pipeline import TOKENS, WIDTH, make_toy

ACTIONS = "SRRSRR"
SCHEDULE = Schedule.from_actions(ACTIONS)
NAMES = {"names": ("cond", "uncond")}
KEPT = {
    "sites": Guidance(unconditional=Schedule.from_actions("SRSRSR")),
    "output": Guidance(output=Schedule.from_actions("SRRSRR")),
    "difference": Guidance(output=Schedule.from_actions("SRRSRR"), keep="difference"),
}


@pytest.fixture(scope="module", params=KEPT.values(), ids=KEPT)
def guided(request):
    denoiser = dqar_fx.transform(make_toy(), SCHEDULE, guidance=request.param)
    run(denoiser, 0, **NAMES)
    return denoiser


def test_guided_requests_in_turns_equal_sequential_ones(guided):
    """The conditional outputs that a difference is added to are each session's own."""
    wanted = {}
    for seed in (1, 2):
        guided.reset()
        wanted[seed] = run(guided, seed, **NAMES)
    guided.reset()
    sessions = {seed: guided.session() for seed in (1, 2)}
    calls = {seed: request(guided, seed, **NAMES) for seed in (1, 2)}
    found = {seed: [] for seed in (1, 2)}
    for _ in range(3 * STEPS):
        for seed in (1, 2):
            with sessions[seed].turn():
                found[seed].append(next(calls[seed]))
    for seed in (1, 2):
        assert are_equal(finish(found[seed]), wanted[seed])
        sessions[seed].close()
    assert not guided._streams.keys() & {0, 1}


def test_guided_threads_equal_sequential_requests(guided):
    wanted = {}
    for seed in (1, 2):
        guided.reset()
        wanted[seed] = run(guided, seed, **NAMES)
    barrier = Barrier(2)

    def work(seed):
        found = []
        with guided.session():
            for latent in request(guided, seed, **NAMES):
                found.append(latent)
                barrier.wait(60)
        return finish(found)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, (1, 2)))
    assert are_equal(found[0], wanted[1])
    assert are_equal(found[1], wanted[2])


# ---- halves of one batch -------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return dqar_fx.transform(
        make_toy(), SCHEDULE, guidance=Guidance(batched="conditional_first")
    )


@pytest.fixture
def batched(base):
    base.reset()
    return base


CONDITIONAL, UNCONDITIONAL, THIRD = (prompt(seed, 1) for seed in (1, 2, 3))


class HookedToy:
    """The model by plain hooks, which keep and replace attention by row and stream."""

    def __init__(self):
        self.model, self.kept = make_toy(), {}

    @torch.no_grad()
    def __call__(self, step, stream, latent, t, text):
        handles = [
            block.attn.register_forward_hook(self.hook(site, step, stream))
            for site, block in enumerate(self.model.blocks)
        ]
        try:
            return self.model(latent, t.expand(len(latent)), text)
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, site, step, stream):
        def replace(_module, _args, output):
            if ACTIONS[step] == "S" or (stream, site) not in self.kept:
                self.kept[stream, site] = output
            return self.kept[stream, site]

        return replace


def walk(denoiser, is_guided, *, has_third=False):
    """Each call of one run against the hooks, with guidance at some steps.

    After it may come a third stream, as that of skip-layer guidance.
    """
    hooked = HookedToy()
    for step, t in enumerate(torch.linspace(900, 100, STEPS)):
        latent = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(step))
        wanted = [hooked(step, "cond", latent, t, CONDITIONAL)]
        text = CONDITIONAL
        if is_guided[step]:
            wanted.append(hooked(step, "uncond", latent, t, UNCONDITIONAL))
            latent = torch.cat([latent] * 2)
            text = torch.cat([CONDITIONAL, UNCONDITIONAL])
        found = denoiser(latent, t.expand(len(latent)), encoder_hidden_states=text)
        assert torch.equal(found, torch.cat(wanted)), f"step {step}"
        if has_third:
            latent = latent[:1]
            found = denoiser(latent, t.expand(1), encoder_hidden_states=THIRD)
            assert torch.equal(found, hooked(step, "third", latent, t, THIRD)), f"step {step}"
    return denoiser.runs[-1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "is_guided",
    [[True] * 6, [True, True, False, False, False, False], [True] * 4 + [False] * 2],
    ids=["on", "cut in mid-run", "cut late"],
)
def test_batched_guidance_that_ends_goes_on_with_the_conditional_half(batched, is_guided):
    found = walk(batched, is_guided)
    assert [call.step for call in found.calls] == [
        step for step, guided in enumerate(is_guided) for _ in range(1 + guided)
    ]
    assert found.num_reused == found.num_promised
    assert not found.reasons


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("is_guided", [[True] * 6, [True] * 4 + [False] * 2])
def test_stream_without_halves_beside_batched_guidance_leaves_them_what_they_keep(
    batched, is_guided
):
    found = walk(batched, is_guided, has_third=True)
    assert [call.step for call in found.calls] == [
        step for step, guided in enumerate(is_guided) for _ in range(2 + guided)
    ]
    assert found.num_reused == found.num_promised
    assert not found.reasons


@pytest.mark.filterwarnings("error")
def test_batched_guidance_that_is_off_runs_plainly(batched):
    found = walk(batched, [False] * STEPS)
    assert [call.step for call in found.calls] == list(range(STEPS))
    assert not found.reasons


@pytest.mark.parametrize(
    "is_guided",
    [[False, False, False, True, True, True], [False, True, True, True, True, True]],
    ids=["where it stores", "where it reuses"],
)
def test_batched_guidance_that_begins_in_mid_run(batched, is_guided):
    """The conditional half goes on; the other has kept nothing, and computes where it must."""
    found = walk(batched, is_guided)
    cold = [call.num_cold for call in found.calls]
    sites = len(batched.table.sites)
    begins = is_guided.index(True)
    assert sum(cold) == (0 if ACTIONS[begins] == "S" else sites)
    assert [call.step for call in found.calls] == [
        step for step, guided in enumerate(is_guided) for _ in range(1 + guided)
    ]


def test_batched_guidance_that_pauses_goes_on(batched):
    found = walk(batched, [True, False, True, True, False, True])
    assert sum(call.num_cold for call in found.calls) == 0


def test_two_samples_are_never_halves_though_their_prompts_are_the_same_tensor(batched):
    """First a guided batch, then two pictures, with the very tensor of prompts."""
    text = torch.cat([CONDITIONAL, UNCONDITIONAL])
    t = torch.full((2,), 900.0)
    one = torch.randn(1, TOKENS, WIDTH)
    batched(torch.cat([one, one]), t, encoder_hidden_states=text)
    batched.reset()
    two = torch.randn(2, TOKENS, WIDTH)
    found = batched(two, t, encoder_hidden_states=text)
    assert torch.equal(found, make_toy()(two, t, text))
    assert len(batched.runs[-1].calls) == 1


def test_log_of_skipped_calls_says_that_they_read(batched):
    denoiser = dqar_fx.transform(make_toy(), SCHEDULE, guidance=KEPT["output"])
    run(denoiser, 1, **NAMES)
    (found,) = denoiser.runs
    skipped = [call for call in found.calls if call.is_whole]
    assert [call.step for call in skipped] == [1, 2, 4, 5]
    assert all(call.count(Action.REUSE) == 1 for call in skipped)
