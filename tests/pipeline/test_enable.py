"""A stock pipeline in one line: what changes while it is enabled, and what does not after."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from functools import partial

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

import dqar_fx
from benchmarks.stock import dit
from benchmarks.stock.tiny import seeded_draws
from dqar_fx import DqarError, Schedule
from dqar_fx.pipeline.watch import unwatch, watch
from dqar_fx.steps.scheduler import WATCH

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
EVERY_THIRD = Schedule.interval(every=3)


def ask(pipe, steps=6, seed=0):
    with seeded_draws(seed):
        return pipe([3, 7], num_inference_steps=steps, output_type="pt").images


@pytest.fixture
def pipe():
    return dit.make(DDIMScheduler)


def test_enable_gives_the_pipeline_and_disable_all_that_was_there(pipe):
    plain = ask(pipe)
    before = {**vars(pipe), "config": pipe.config}
    content, kind = dict(vars(pipe.scheduler)), type(pipe.scheduler)
    assert dqar_fx.enable(pipe, EVERY_THIRD) is pipe
    assert not torch.equal(ask(pipe), plain)
    assert dqar_fx.disable(pipe) is pipe
    config = before.pop("config")
    del before["_internal_dict"]  # diffusers makes it anew at each change
    assert vars(pipe).keys() - before.keys() == {"_internal_dict"}
    assert all(vars(pipe)[name] is value for name, value in before.items())
    assert pipe.config == config
    assert type(pipe.scheduler) is kind
    assert vars(pipe.scheduler).keys() == content.keys()
    assert torch.equal(ask(pipe), plain)


def test_enable_as_a_context_ends_with_it_whatever_happens(pipe):
    model = pipe.transformer
    inside = []

    def fail():
        with dqar_fx.enabled(pipe, EVERY_THIRD):
            inside.append(pipe.transformer)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert pipe.transformer is model is not inside[0]
    with dqar_fx.enabled(pipe, EVERY_THIRD) as same:
        assert same is pipe


def test_enable_computes_all_bit_for_bit(pipe):
    plain = ask(pipe)
    with dqar_fx.enabled(pipe, Schedule.compute_all()):
        assert torch.equal(ask(pipe), plain)


def test_schedule_without_a_number_serves_runs_of_any_length(pipe, captures):
    dqar_fx.enable(pipe, EVERY_THIRD)
    for steps in (6, 9, 6, 4):
        ask(pipe, steps)
        (run,) = dqar_fx.summary(pipe).runs
        assert (run.length, run.reused) == (steps, run.promised)
        table = EVERY_THIRD.for_run(steps).resolve(pipe.transformer.table.sites)
        assert pipe.transformer.table == table
    assert len(captures) == 1


def test_schedule_with_a_number_differs_loudly(pipe):
    dqar_fx.enable(pipe, Schedule.interval(6, 3))
    with pytest.warns(UserWarning, match="has 4 steps but the branch table 6"):
        ask(pipe, 4)
    with pytest.warns(UserWarning, match="has 5 steps but the branch table 6"):
        ask(pipe, 5)
    with pytest.raises(dqar_fx.StepError, match="the table has 6"):
        ask(pipe, 8)
    assert ask(pipe, 6).isfinite().all()


def test_table_that_may_be_resampled_is_made_for_the_run(pipe):
    dqar_fx.enable(pipe, Schedule.from_actions("CRRCRR", resample=True))
    ask(pipe, 12)
    (run,) = dqar_fx.summary(pipe).runs
    assert run.length == 12
    assert run.reused == run.promised > 0


@pytest.mark.parametrize("make", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_scheduler_that_is_replaced_tells_the_step(pipe, make):
    dqar_fx.enable(pipe, EVERY_THIRD)
    ask(pipe)
    pipe.scheduler = make.from_config(pipe.scheduler.config)
    ask(pipe, 7)
    (run,) = pipe.transformer.runs[-1:]
    assert [call.step for call in run.calls] == list(range(7))
    assert run.num_reused == run.num_promised
    dqar_fx.disable(pipe)


def test_scheduler_made_of_the_class_of_a_watched_one_counts_each_step_once(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    for again in (False, True):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        if again:
            dqar_fx.disable(pipe)
            assert type(pipe.scheduler) is DDIMScheduler
            dqar_fx.enable(pipe, EVERY_THIRD)
        ask(pipe)
        (run,) = dqar_fx.summary(pipe).runs
        assert run.streams[0].steps == tuple(range(6))
        assert run.reused == run.promised > 0


def test_log_of_ended_runs_keeps_no_scheduler_alive(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    pipe.scheduler = DPMSolverMultistepScheduler()  # it holds latents
    ask(pipe)
    before = weakref.ref(pipe.scheduler)
    pipe.scheduler = DPMSolverMultistepScheduler()
    ask(pipe)
    gc.collect()
    assert len(pipe.transformer.runs) == 2
    assert before() is None


class Bare:
    """Something that a pipeline calls its scheduler, and that has no method of one."""


@pytest.mark.parametrize("scheduler", [None, Bare()])
def test_scheduler_that_cannot_be_watched_is_left_alone(pipe, scheduler):
    model, pipe.scheduler = pipe.transformer, scheduler
    with dqar_fx.enabled(pipe, EVERY_THIRD):
        assert pipe.transformer is not model
    assert pipe.transformer is model
    assert pipe.scheduler is scheduler


def test_second_order_schedulers_have_a_row_for_each_call():
    pipe = dit.make(HeunDiscreteScheduler)
    with dqar_fx.enabled(pipe, EVERY_THIRD | Schedule.second_calls()):
        ask(pipe, 5)
        run = pipe.transformer.runs[-1]
        letters = [dqar_fx.Action(int(call.actions[0])).letter for call in run.calls]
    assert [call.step for call in run.calls] == list(range(9))
    assert all(letter == "R" for letter in letters[3::2])  # the second calls after a warm-up


def test_pipelines_that_share_their_parts_are_watched_as_long_as_one_is_enabled(pipe):
    other = DiTPipeline(copy.deepcopy(pipe.transformer), pipe.vae, pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    kind = type(pipe.scheduler)
    for each in (pipe, other):
        dqar_fx.enable(each, EVERY_THIRD)
    for each in (pipe, other, pipe):
        ask(each)
        (run,) = dqar_fx.summary(each).runs
        assert run.reused == run.promised > 0
    dqar_fx.disable(pipe)
    assert WATCH in vars(other.scheduler)
    ask(other)
    dqar_fx.disable(other)
    assert type(other.scheduler) is kind


# ---- the scheduler that is watched ----------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_of_a_watched_scheduler_are_of_the_original_class(duplicate):
    scheduler = FlowMatchEulerDiscreteScheduler()
    watch(scheduler)
    other = duplicate(scheduler)
    assert type(other) is FlowMatchEulerDiscreteScheduler
    assert WATCH not in vars(other)
    scheduler.set_timesteps(4)
    run = vars(scheduler)[WATCH].run
    other.set_timesteps(3)
    x = torch.zeros(1)
    other.step(x, other.timesteps[0], x)
    assert (vars(scheduler)[WATCH].run, vars(scheduler)[WATCH].steps) == (run, 0)
    assert len(scheduler.timesteps) == 4


def test_watched_scheduler_looks_like_the_original():
    scheduler = FlowMatchEulerDiscreteScheduler()
    methods = {
        name: inspect.signature(getattr(scheduler, name)) for name in ("step", "set_timesteps")
    }
    saved = scheduler.to_json_string()
    watch(scheduler)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert {name: inspect.signature(getattr(scheduler, name)) for name in methods} == methods
    assert scheduler.to_json_string() == saved
    remade = type(scheduler).from_config(scheduler.config)
    remade.set_timesteps(3)  # of the watched class, which nobody watches
    unwatch(scheduler)
    assert type(scheduler) is FlowMatchEulerDiscreteScheduler
    assert WATCH not in vars(scheduler)
    unwatch(scheduler)  # once more does nothing


# ---- the summary ----------------------------------------------------------------------------


def test_summary_counts_what_was_done_and_is_read_back(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    ask(pipe)
    found = dqar_fx.summary(pipe)
    ((run,), (stream,)) = found.runs, found.runs[0].streams
    sites = len(pipe.transformer.table.sites)
    assert (run.denoiser, run.clock, run.first, run.last) == ("transformer", "scheduler", 0, 5)
    assert stream.steps == tuple(range(6))
    assert (stream.reused, stream.promised, stream.cold) == (4 * sites, 4 * sites, 0)
    assert (stream.num_cells, stream.computed + stream.stored) == (6 * sites, 2 * sites)
    assert stream.macs < stream.computed_macs
    assert dqar_fx.Summary.from_json(found.to_json()) == found
    assert f"reused {4 * sites} of the {4 * sites} cells" in str(found)
    ask(pipe, 9)
    assert dqar_fx.summary(pipe, run=-2).runs[0].length == 6


def test_summary_has_times_where_they_are_asked_for(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    ask(pipe)
    assert dqar_fx.summary(pipe).runs[0].streams[0].milliseconds is None
    pipe.transformer.times_calls = True
    ask(pipe)
    assert dqar_fx.summary(pipe).runs[0].streams[0].milliseconds > 0


def test_summary_before_anything_ran_says_so(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    assert "transformer: was not called yet" in str(dqar_fx.summary(pipe))


# ---- wrong use ------------------------------------------------------------------------------


def test_enable_of_what_is_no_pipeline_is_refused(pipe):
    with pytest.raises(DqarError, match="object has no denoiser"):
        dqar_fx.enable(object(), EVERY_THIRD)
    with pytest.raises(DqarError, match="has no denoiser"):
        dqar_fx.enable(pipe.transformer, EVERY_THIRD)


def test_enable_twice_is_refused_and_changes_nothing(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    denoiser = pipe.transformer
    with pytest.raises(DqarError, match="enabled already"):
        dqar_fx.enable(pipe, EVERY_THIRD)
    assert pipe.transformer is denoiser


def test_enable_with_wrong_options_leaves_the_pipeline_as_it_was(pipe):
    model, kind = pipe.transformer, type(pipe.scheduler)
    for wrong in (
        partial(dqar_fx.enable, pipe, "interval"),
        partial(dqar_fx.enable, pipe, EVERY_THIRD, cache="int3"),
    ):
        with pytest.raises(DqarError):
            wrong()
    assert pipe.transformer is model
    assert type(pipe.scheduler) is kind
    with pytest.raises(DqarError, match="not enabled"):
        dqar_fx.disable(pipe)


def test_summary_of_another_run_than_there_are_is_refused(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    ask(pipe)
    with pytest.raises(DqarError, match="no run 4: the logs of 1 are kept"):
        dqar_fx.summary(pipe, run=4)


# ---- beyond the pipeline's own loop ------------------------------------------------------


def test_loop_of_ones_own_over_the_parts_of_a_pipeline_follows_its_scheduler(pipe):
    """Its timesteps are computed anew at each call, so that the scheduler alone tells."""
    dqar_fx.enable(pipe, EVERY_THIRD)
    scheduler, denoiser = pipe.scheduler, pipe.transformer
    for steps in (6, 4):
        scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, 8, 8)
        for t in scheduler.timesteps:
            given = (t * 1.0).expand(1)
            output = denoiser(x, timestep=given, class_labels=torch.tensor([3])).sample[:, :4]
            x = scheduler.step(output, t, x).prev_sample
        run = denoiser.runs[-1]
        assert (run.clock, run.length, run.last) == ("scheduler", steps, steps - 1)
        assert run.num_reused == run.num_promised > 0


def test_disabled_pipeline_is_where_it_was_moved_meanwhile(pipe):
    plain = ask(dit.make(DDIMScheduler).to(torch.float64))
    dqar_fx.enable(pipe, EVERY_THIRD)
    pipe.to(torch.float64)
    ask(pipe)
    model = dqar_fx.disable(pipe).transformer
    assert {p.dtype for p in (*model.parameters(), *model.buffers())} == {torch.float64}
    assert torch.equal(ask(pipe), plain)


def test_table_that_waits_for_a_run_says_so_wherever_it_is_asked_for(pipe):
    dqar_fx.enable(pipe, EVERY_THIRD)
    denoiser = pipe.transformer
    denoiser.prepare(
        torch.randn(1, 4, 8, 8), timestep=torch.tensor([1]), class_labels=torch.tensor([3])
    )
    for look in (
        lambda: denoiser.table,
        lambda: denoiser.cache_bytes,
        lambda: denoiser.memory,
        lambda: denoiser.explain(3),
        lambda: denoiser.row_graph(3),
        lambda: denoiser.report(device="A100"),
    ):
        with pytest.raises(DqarError, match="made when a run says how many"):
            look()
    assert denoiser.explain().sites
    assert denoiser.report(EVERY_THIRD.for_run(6), device="A100").num_steps == 6


@pytest.mark.parametrize("way", ["released", "converted", "kept"])
def test_disable_gives_the_weights_that_the_denoiser_got(way, pipe):
    model = pipe.transformer
    state = {name: 1.1 * value for name, value in model.state_dict().items()}
    dqar_fx.enable(pipe, EVERY_THIRD, **({"release": "disk"} if way == "released" else {}))
    ask(pipe)
    pipe.transformer.load_state_dict(state)
    if way == "converted":
        pipe.transformer.to(torch.float64).to(torch.float32)
    dqar_fx.disable(pipe)
    assert pipe.transformer is model
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
