"""Requests at a time to one denoiser: each has slots, a clock and a log of its own."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dqar_fx
from dqar_fx import Schedule, StepError
from dqar_fx.steps.sessions import MAX_SESSIONS
from tests.helpers.requests import (
    STEPS,
    are_equal,
    ask,
    finish,
    prompt,
    request,
    run,
    slot_bytes,
)
from tests.helpers.toy_pipeline import TOKENS, WIDTH, make_toy

SCHEDULE = Schedule.from_actions("SRRSRR")
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def base():
    denoiser = dqar_fx.transform(make_toy(), SCHEDULE)
    run(denoiser, 0)
    return denoiser


@pytest.fixture
def denoiser(base):
    return base.with_schedule(SCHEDULE)


@pytest.fixture
def alone(base):
    """The latents of each request on a denoiser of its own."""
    return {seed: run(base.with_schedule(SCHEDULE), seed) for seed in SEEDS}


def is_by_the_table(runs):
    """Whether each run went through all steps of two streams, and nothing started cold."""
    return all(
        [call.step for call in each.calls] == [i for i in range(STEPS) for _ in range(2)]
        and each.num_reused == each.num_promised > 0
        and not each.reasons
        for each in runs
    )


# ---- threads -------------------------------------------------------------------------------


def test_threads_with_sessions_equal_sequential_requests(denoiser, alone):
    barrier = threading.Barrier(len(SEEDS))

    def work(seed):
        found = []
        with denoiser.session() as session:
            for latent in request(denoiser, seed):
                if latent is not None:
                    found.append(latent)
                    barrier.wait(60)  # all are in the midst of their runs
        return found, session.runs

    with ThreadPoolExecutor(len(SEEDS)) as pool:
        results = list(pool.map(work, SEEDS))
    for seed, (found, runs) in zip(SEEDS, results, strict=True):
        assert are_equal(found, alone[seed])
        assert len(runs) == 1
        assert is_by_the_table(runs)


def test_second_thread_without_a_session_is_refused_in_a_run(denoiser, alone):
    def intrude():
        with pytest.raises(StepError, match=r"is inside of a run.*session\(\)"):
            run(denoiser, 2)

    found = []
    for number, latent in enumerate(request(denoiser, 1)):
        found.append(latent)
        if number < 3 * STEPS - 2:  # the last call is the one before the last latent
            in_thread(intrude)
    assert are_equal(finish(found), alone[1])


def test_second_thread_is_refused_between_calls_that_a_helper_makes(denoiser):
    """A function that is called for each call runs in a frame of its own, at any address."""

    def predict(t):
        return ask(denoiser, torch.zeros(2, TOKENS, WIDTH), t, prompt(1))

    def intrude():
        with pytest.raises(StepError, match="another thread is inside of a run"):
            run(denoiser, 2)

    for step, t in enumerate(torch.linspace(900, 100, STEPS)):
        predict(t)
        if step < STEPS - 1:
            in_thread(intrude)
    (only,) = denoiser.runs
    assert [call.step for call in only.calls] == list(range(STEPS))


def test_second_thread_without_a_session_is_served_between_runs(denoiser, alone):
    run(denoiser, 1)
    assert are_equal(in_thread(lambda: run(denoiser, 2)), alone[2])
    assert are_equal(run(denoiser, 3), alone[3])


def test_second_thread_after_a_run_that_was_left_begins_one_of_its_own(denoiser, alone):
    """A generator that nobody goes on with; then somebody does."""

    def begin():
        calls = request(denoiser, 1)
        for _ in range(4):
            next(calls)
        return calls

    calls = in_thread(begin)
    assert are_equal(run(denoiser, 1), alone[1])
    assert [each.last for each in denoiser.runs] == [1, STEPS - 1]
    in_thread(lambda: next(calls))
    assert denoiser.runs[-1].calls[0].count(dqar_fx.Action.REUSE) == 0


def test_second_thread_is_served_after_the_first_has_failed(denoiser, alone):
    def abort():
        calls = request(denoiser, 1)
        for _ in range(4):
            next(calls)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_thread(abort)
    assert are_equal(run(denoiser, 2), alone[2])


def test_second_thread_cannot_name_the_stream_of_the_first(denoiser):
    named = {"names": ("cond", "uncond")}
    wanted = run(denoiser, 1, **named)
    denoiser.reset()
    found = []
    for latent in request(denoiser, 1, **named):
        with_name(denoiser, found.append, latent)
    assert are_equal(finish(found), wanted)
    assert {call.stream[0] for call in denoiser.runs[-1].calls} == {"cond", "uncond"}


def with_name(denoiser, do, value):
    """Do something while another thread has named a stream."""
    is_named, is_done = threading.Event(), threading.Event()

    def name():
        with denoiser.cache_context("other"):
            is_named.set()
            is_done.wait(60)

    thread = threading.Thread(target=name)
    thread.start()
    is_named.wait(60)
    do(value)
    is_done.set()
    thread.join()


def in_thread(function):
    """What a function gives in a thread of its own, or raises there."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_two_denoisers_are_captured_by_two_threads_at_once():
    wanted = [run(dqar_fx.transform(make_toy(seed), SCHEDULE), 1) for seed in (1, 2)]
    barrier = threading.Barrier(4)
    denoisers = [dqar_fx.transform(make_toy(seed), SCHEDULE) for seed in (1, 2)]

    def work(which):
        denoiser = denoisers[which % 2]
        barrier.wait(60)
        with denoiser.session():
            return run(denoiser, 1)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    for which, latents in enumerate(found):
        assert are_equal(latents, wanted[which % 2])
    assert [len(denoiser.captured_programs()) for denoiser in denoisers] == [1, 1]


# ---- turns ---------------------------------------------------------------------------------


def test_generators_in_turns_equal_sequential_requests(denoiser, alone):
    sessions = {seed: denoiser.session() for seed in SEEDS}
    calls = {seed: request(denoiser, seed) for seed in SEEDS}
    found = {seed: [] for seed in SEEDS}
    for _ in range(3 * STEPS):
        for seed in SEEDS:
            with sessions[seed].turn():
                found[seed].append(next(calls[seed]))
    for seed in SEEDS:
        assert are_equal(finish(found[seed]), alone[seed])
        assert is_by_the_table(sessions[seed].runs)
        sessions[seed].close()


def test_turns_and_calls_outside_do_not_mix(denoiser, alone):
    session, calls = denoiser.session(), request(denoiser, 1)
    found = []
    for outside in request(denoiser, 2):
        with session.turn():
            found.append(next(calls))
        found.append(("outside", outside))
    inside = [each for each in found if not isinstance(each, tuple)]
    outside = [each[1] for each in found if isinstance(each, tuple)]
    assert are_equal(finish(inside), alone[1])
    assert are_equal(finish(outside), alone[2])
    session.close()


def test_session_that_a_generator_leaves_open_is_refused_to_others(denoiser):
    def leaks():
        with denoiser.session():
            yield from request(denoiser, 1)

    calls = leaks()
    next(calls)
    with pytest.raises(StepError, match=r"opened in the generator 'leaks'.*session\.turn\(\)"):
        run(denoiser, 2)
    next(calls)  # it goes on itself
    calls.close()
    run(denoiser, 2)


def test_generator_alone_may_keep_its_session_open(denoiser, alone):
    def own():
        with denoiser.session():
            yield from request(denoiser, 1)

    assert are_equal(finish(own()), alone[1])


def test_generators_without_sessions_start_anew_and_are_right_or_cold(denoiser, alone):
    """Two requests that take turns in one thread without a session: never a stale value."""
    first, second = request(denoiser, 1, streams=1), request(denoiser, 2, streams=1)
    with pytest.warns(UserWarning, match=r"start cold|runs in a row"):
        found = [(next(first), next(second)) for _ in range(2 * STEPS)]
    # other prompts: at each step the second request starts cold where it would reuse
    model = make_toy()
    wanted = {seed: run(model, seed, streams=1) for seed in (1, 2)}
    for seed, latents in zip((1, 2), zip(*found, strict=True), strict=True):
        assert torch.equal(finish(latents)[0], wanted[seed][0])


# ---- tasks ---------------------------------------------------------------------------------


def test_tasks_with_sessions_equal_sequential_requests(denoiser, alone):
    async def work(seed):
        found = []
        with denoiser.session() as session:
            for latent in request(denoiser, seed):
                found.append(latent)
                await asyncio.sleep(0)
        return finish(found), session.runs

    async def everyone():
        return await asyncio.gather(*map(work, SEEDS))

    for seed, (found, runs) in zip(SEEDS, asyncio.run(everyone()), strict=True):
        assert are_equal(found, alone[seed])
        assert is_by_the_table(runs)


# ---- memory --------------------------------------------------------------------------------


def test_slots_of_a_session_are_returned_when_it_is_closed(denoiser):
    run(denoiser, 1)
    one = slot_bytes(denoiser)
    assert one > 0
    with denoiser.session():
        run(denoiser, 2)
        assert slot_bytes(denoiser) == 2 * one
        with denoiser.session():
            run(denoiser, 3)
            assert slot_bytes(denoiser) == 3 * one
        assert slot_bytes(denoiser) == 2 * one
    assert slot_bytes(denoiser) == one


def test_slots_are_returned_when_a_session_fails(denoiser):
    def fail():
        next(request(denoiser, 1))
        assert slot_bytes(denoiser) > 0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), denoiser.session():
        fail()
    assert slot_bytes(denoiser) == 0


def test_log_of_a_closed_session_stays(denoiser):
    with denoiser.session() as session:
        run(denoiser, 1)
        assert denoiser.runs == session.runs
    assert denoiser.runs == ()
    assert is_by_the_table(session.runs)


def test_closed_session_is_refused(denoiser):
    session = denoiser.session()
    session.close()
    session.close()
    with pytest.raises(StepError, match="this session is closed"), session.turn():
        pass


def test_too_many_sessions_are_refused(denoiser):
    sessions = [denoiser.session() for _ in range(MAX_SESSIONS)]
    with pytest.raises(StepError, match=f"{MAX_SESSIONS} sessions of this denoiser are open"):
        denoiser.session()
    sessions[5].close()
    denoiser.session().close()
    for session in sessions:
        session.close()


def test_sessions_that_were_dropped_give_their_place_and_slots_back(denoiser, alone):
    def begins():
        session = denoiser.session()
        calls = request(denoiser, 1)
        while True:
            with session.turn():
                given = next(calls)
            yield given

    for _ in range(MAX_SESSIONS):
        next(begins())
    gc.collect()
    assert slot_bytes(denoiser) > 0
    with denoiser.session():
        assert slot_bytes(denoiser) == 0
        assert are_equal(run(denoiser, 1), alone[1])


def test_session_is_not_dropped_in_the_midst_of_its_turn(denoiser, alone):
    with denoiser.session().turn():
        calls = request(denoiser, 1)
        found = [next(calls) for _ in range(3)]
        gc.collect()
        denoiser.session().close()
        assert are_equal(finish([*found, *calls]), alone[1])


def call_once(denoiser):
    """One call by a function, and a reference to a variable of it that the call never sees."""
    own = torch.zeros(1)
    ask(denoiser, prompt(1), torch.tensor([900.0])[0], prompt(2))
    return weakref.ref(own)


def test_loop_of_one_step_leaves_none_of_its_variables_alive(base):
    denoiser = base.with_schedule(Schedule.compute_all(1))
    own = call_once(denoiser)
    gc.collect()
    assert own() is None


def test_run_that_ends_beside_a_session_leaves_none_of_its_variables_alive(denoiser):
    other = denoiser.session()
    own = call_once(denoiser)
    denoiser._reset_stateful_cache()  # as a diffusers pipeline does at its end
    gc.collect()
    assert own() is None
    other.close()


# ---- one of them ends ----------------------------------------------------------------------


def test_end_of_one_request_leaves_the_others_alone(denoiser, alone):
    """As a diffusers pipeline ends one: ``maybe_free_model_hooks`` resets what is stateful."""
    first, second = denoiser.session(), denoiser.session()
    calls, found = request(denoiser, 1), []
    for number in range(3 * STEPS):
        with first.turn():
            found.append(next(calls))
        if number == 5:
            with second.turn():
                run(denoiser, 2)
                denoiser._reset_stateful_cache()
    assert are_equal(finish(found), alone[1])
    first.close()
    second.close()


def test_run_that_is_too_long_leaves_the_others_alone(denoiser, alone):
    first, second = denoiser.session(), denoiser.session()
    calls = request(denoiser, 1)
    found = []
    for number in range(3 * STEPS):
        with first.turn():
            found.append(next(calls))
        if number == 5:
            with second.turn(), pytest.raises(StepError, match="longer than the branch table"):
                run(denoiser, 2, steps=2 * STEPS)
    assert are_equal(finish(found), alone[1])
    first.close()
    second.close()


def test_end_of_the_only_request_returns_its_slots(denoiser):
    run(denoiser, 1)
    denoiser._reset_stateful_cache()
    assert slot_bytes(denoiser) == 0
