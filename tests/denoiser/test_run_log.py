"""What a denoiser really did, call by call, beside what its table promised."""

from __future__ import annotations

import logging
import sys
import warnings

import numpy as np
import pytest
import torch

import dqar_fx
from dqar_fx import Action, Schedule
from dqar_fx.steps.runs import KEPT_RUNS
from tests.helpers.requests import (
    STEPS,
    are_equal,
    ask,
    ask_each,
    prompt,
    request,
    run,
)
from tests.helpers.toy_pipeline import TOKENS, WIDTH, make_toy

ACTIONS = "SRRSRR"
SCHEDULE = Schedule.from_actions(ACTIONS)


@pytest.fixture(scope="module")
def base():
    denoiser = dqar_fx.transform(make_toy(), SCHEDULE)
    run(denoiser, 0)
    return denoiser


@pytest.fixture
def denoiser(base):
    return base.with_schedule(SCHEDULE)


def latent(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TOKENS, WIDTH, generator=generator)


def test_run_is_what_the_table_promised(denoiser):
    run(denoiser, 1)
    (found,) = denoiser.runs
    table = denoiser.table
    assert [(c.step, c.stream) for c in found.calls] == [
        (step, (None, stream)) for step in range(STEPS) for stream in range(2)
    ]
    for call in found.calls:
        assert call.table is table
        assert np.array_equal(call.actions, table.actions[call.step])
        assert (call.num_cold, call.reason) == (0, "")
    num_reads = 2 * int((table.actions == Action.REUSE).sum())
    assert found.num_reused == found.num_promised == num_reads
    assert (found.first, found.last, found.reasons) == (0, STEPS - 1, {})


def test_latest_runs_are_kept(denoiser):
    for seed in range(KEPT_RUNS + 3):
        run(denoiser, seed, streams=1)
    assert len(denoiser.runs) == KEPT_RUNS
    assert all(len(each.calls) == STEPS for each in denoiser.runs)
    assert [each.is_ended for each in denoiser.runs] == [True] * (KEPT_RUNS - 1) + [False]


def test_run_that_begins_late_is_cold_without_a_warning(denoiser):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(denoiser, 1, streams=1, first=1)
    (found,) = denoiser.runs
    sites = len(denoiser.table.sites)
    assert found.first == 1
    assert found.calls[0].num_cold == sites
    assert found.reasons == {"its run began at step 1": sites}
    assert found.num_promised - found.num_reused == sites


def test_prompt_that_changes_is_said_once_and_counted(denoiser):
    sites, latents = len(denoiser.table.sites), [latent(step) for step in range(STEPS)]
    texts = [prompt(1), prompt(2), prompt(2), prompt(2), prompt(2), prompt(3)]
    with pytest.warns(UserWarning, match=r"sites start cold.*encoder_hidden_states") as said:
        ask_each(denoiser, latents, texts)
    (found,) = denoiser.runs
    assert [call.num_cold for call in found.calls] == [0, sites, 0, 0, 0, sites]
    assert len(said) == 1
    ((reason, cells),) = found.reasons.items()
    assert "encoder_hidden_states" in reason
    assert cells == 2 * sites


def test_prompt_written_in_place_never_reuses_what_the_old_one_left(denoiser):
    """The outputs of the changed prompt are those of a request of its own."""
    timesteps, text = torch.linspace(900, 100, STEPS), prompt(1)
    for step in (0, 1):
        ask(denoiser, latent(step), timesteps[step], text)
    text.copy_(prompt(2))
    with pytest.warns(UserWarning, match="encoder_hidden_states"):
        found = ask(denoiser, latent(2), timesteps[2], text)
    with torch.no_grad():
        assert torch.equal(found, make_toy()(latent(2), timesteps[2].expand(2), text))
    assert denoiser.runs[-1].calls[2].num_cold == len(denoiser.table.sites)


def test_new_kind_of_reason_is_warned_of_again(denoiser):
    latents = [latent(), latent(1), latent(2, 1)]
    with pytest.warns(UserWarning, match="start cold") as said:
        ask_each(denoiser, latents, [prompt(1), prompt(2), prompt(2, 1)])
    assert len(said) == 2
    assert "other shapes" in str(said[1].message)


def test_batch_that_shrinks_computes_and_then_reuses_its_own(denoiser):
    texts = [prompt(1, 2)] * 2 + [prompt(1, 1)] * 4
    latents = [latent(step, len(text)) for step, text in enumerate(texts)]
    with pytest.warns(UserWarning, match=r"other shapes.*Guidance\(batched=\.\.\.\)"):
        found = ask_each(denoiser, latents, texts)
    t = torch.linspace(900, 100, STEPS)[2]
    with torch.no_grad():
        assert torch.equal(found[2], make_toy()(latents[2], t.expand(1), texts[2]))
    (one,) = denoiser.runs
    assert [call.step for call in one.calls] == list(range(STEPS))
    letters = ["".join({Action(int(a)).letter for a in call.actions}) for call in one.calls]
    assert letters == ["S", "R", "S", "S", "R", "R"]


def test_batch_that_grows_again_goes_on_with_what_it_had(denoiser):
    big, small = prompt(1, 2), prompt(1, 1)
    texts = [big, small, big, big, big, big]
    latents = [latent(step, len(text)) for step, text in enumerate(texts)]
    with pytest.warns(UserWarning, match="other shapes"):
        ask_each(denoiser, latents, texts)
    (one,) = denoiser.runs
    assert [call.num_cold > 0 for call in one.calls] == [False, True] + [False] * 4
    assert one.calls[2].count(Action.REUSE) > 0


def test_mixed_timesteps_compute_all_and_say_so_once(denoiser):
    """Diffusion forcing: each sample at a step of its own, one after the other."""
    times = torch.tensor([[900.0, 700.0], [700.0, 500.0], [500.0, 300.0], [300.0, 100.0]])
    calls = [(latent(index), t, prompt(1)) for index, t in enumerate(times)]
    with pytest.warns(UserWarning, match="its samples stand at different timesteps") as said:
        found = [denoiser(*call) for call in calls]
    assert len(said) == 1
    with torch.no_grad():
        wanted = [make_toy()(*call) for call in calls]
    assert are_equal(found[1:], wanted[1:])
    (one,) = denoiser.runs
    assert all(call.count(Action.COMPUTE) == len(call.actions) for call in one.calls[1:])
    assert one.reasons


def test_mixed_timesteps_are_no_loss_where_the_table_computes_all(base):
    denoiser = base.with_schedule(Schedule.compute_all(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, t in enumerate(torch.tensor([[900.0, 700.0], [700.0, 500.0]])):
            denoiser(latent(index), t, encoder_hidden_states=prompt(1))
    assert not denoiser.runs[-1].reasons


def test_mixed_timesteps_may_have_more_calls_than_the_table_has_rows(base):
    denoiser = base.with_schedule(Schedule.from_actions("SR"))

    def call(index):
        times = torch.tensor([900.0, 700.0]) - 100 * index
        denoiser(latent(index), times, encoder_hidden_states=prompt(1))

    call(0)
    with pytest.warns(UserWarning, match="its samples stand at different timesteps"):
        call(1)
    for index in (2, 3):
        call(index)
    (one,) = denoiser.runs
    assert [call.step for call in one.calls] == [0, 1, 2, 3]
    assert one.num_promised == len(denoiser.table.sites)
    assert one.num_reused == 0


def test_describe_says_what_was_reused_and_why_not_more(denoiser):
    run(denoiser, 1, streams=1, first=1)
    (one,) = denoiser.runs
    sites = len(denoiser.table.sites)
    assert one.describe() == (
        f"run of steps 1 to {STEPS - 1} of {STEPS}: {STEPS - 1} calls, {3 * sites} of "
        f"{4 * sites} promised cells reused; {sites} not, since its run began at step 1"
    )


def test_run_that_ends_is_logged_in_one_line(denoiser, caplog):
    with caplog.at_level(logging.INFO, "dqar_fx.runs"):
        run(denoiser, 1)
        assert not caplog.records
        run(denoiser, 2)
        denoiser.reset()
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [each.describe() for each in denoiser.runs]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


def test_call_that_fails_is_not_logged_and_leaves_nothing(denoiser, monkeypatch):
    """What was stored before it failed is not read by the same request again."""
    wanted = run(denoiser.with_schedule(SCHEDULE), 1)
    module = sys.modules["dqar_fx.program.program"]
    execute = module.execute

    def fail(calls, values):
        execute(calls[:-1], values)
        raise ZeroDivisionError

    calls = request(denoiser, 1)
    for _ in range(7):
        next(calls)
    monkeypatch.setattr(module, "execute", fail)
    with pytest.raises(ZeroDivisionError):
        next(calls)
    monkeypatch.undo()
    assert len(denoiser.runs[-1].calls) == 5
    assert are_equal(run(denoiser, 1), wanted)
    assert [len(each.calls) for each in denoiser.runs] == [5, 2 * STEPS]


@pytest.mark.parametrize("stop", range(1, 3 * STEPS, 4))
def test_request_that_is_dropped_leaves_nothing_to_the_next(denoiser, stop):
    wanted = {seed: run(denoiser.with_schedule(SCHEDULE), seed) for seed in (1, 2)}
    for seed in (1, 2):
        calls = request(denoiser, 1)
        for _ in range(stop):
            next(calls)
        calls.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert are_equal(run(denoiser, seed), wanted[seed])
        assert not denoiser.runs[-1].reasons


def test_time_of_each_call_is_logged_where_it_is_asked_for(denoiser):
    denoiser.times_calls = True
    run(denoiser, 1)
    assert all(call.milliseconds > 0 for call in denoiser.runs[-1].calls)


def test_runs_that_begin_anew_are_counted(denoiser):
    x, text = latent(), prompt(1)
    for _ in range(3):
        x = x + 1
        ask(denoiser, x, torch.tensor(900.0).expand(1), text)
    assert [run.restarts for run in denoiser.runs] == [0, 1, 2]
    assert "the 2 runs before it ended" in str(dqar_fx.summary(denoiser))
