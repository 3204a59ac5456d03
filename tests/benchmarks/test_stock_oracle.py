"""The bench's oracle: rows by the scheduler, streams by what a call is given, kept halves."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from benchmarks.stock.bench import STOCK
from benchmarks.stock.checks import Trial
from benchmarks.stock.oracle import Follower
from benchmarks.stock.watch import Argument, Call, Visit, Watch, find_static, watched

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
STORE, REUSE = 1, 2


def find(name):
    (stock,) = (each for each in STOCK if each.name == name)
    return stock


@lru_cache
def visits_of(name):
    return Trial(find(name)).plain.visits


# ---- rows and streams ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("DiT, DDIM", [*range(10)]),
        ("DiT, Heun", [*range(19)]),
        ("SD3, img2img", [*range(4, 10)]),
        ("Flux, img2img", [*range(4, 10)]),
        ("Flux, true guidance", sorted([*range(8)] * 2)),
        ("SD3, skip-layer guidance", sorted([*range(10), *range(2, 7)])),
        ("Flux, bf16, 100 steps", [*range(100)]),
    ],
)
def test_rows_are_the_schedulers(name, rows):
    assert [visit.row for visit in visits_of(name)] == rows


def test_watched_pipeline_is_left_as_it_was():
    stock = find("SD3")
    pipe, plain = stock.make(), stock.make()
    stock.call(plain, 0)
    with watched(pipe, stock.denoisers):
        stock.call(pipe, 0)
    assert type(pipe.scheduler) is type(plain.scheduler)
    assert {*vars(pipe.scheduler)} == {*vars(plain.scheduler)}
    assert {*vars(pipe.transformer)} == {*vars(plain.transformer)}
    assert not pipe.transformer._forward_pre_hooks


def test_skipped_layers_are_a_stream_of_their_own():
    visits = visits_of("SD3, skip-layer guidance")
    both = [visit.samples for visit in visits if len(visit.samples) == 2]
    third = [visit.samples for visit in visits if len(visit.samples) == 1]
    assert len(set(both)) == len(set(third)) == 1
    assert not {*third[0]} & {*both[0]}


def test_sample_whose_guidance_ends_goes_on_in_its_stream():
    samples = [visit.samples for visit in visits_of("Z-Image, truncated guidance")]
    assert {len(each) for each in samples} == {1, 2}
    assert {each[0] for each in samples} == {samples[0][0]}


def test_residuals_do_not_tell_a_stream():
    samples = {visit.samples for visit in visits_of("SD3, ControlNet")}
    assert len(samples) == 1


def call_of(step, **given):
    arguments = {name: Argument.of(value) for name, value in given.items()}
    return Call("transformer", None, arguments, 0, step)


def test_argument_that_changes_at_each_step_is_not_static():
    calls = [
        call_of(step, x=torch.zeros(1), t=torch.tensor([step]), prompt=prompt, scale=0.5)
        for step in range(6)
        for prompt in (torch.ones(1, 2), torch.zeros(1, 2))
    ]
    assert find_static(calls, "transformer") == {"prompt", "scale"}


def test_equal_calls_of_one_step_are_streams_by_their_order():
    watch = Watch()
    for step in range(4):
        for _ in range(2):
            watch.calls.append(call_of(step, x=torch.zeros(2), prompt=torch.ones(2, 3)))
        watch.add_step(step)
    visits = watch.visits()
    numbers = [[number for _, number in visit.samples] for visit in visits]
    assert numbers == [[0, 1], [2, 3]] * 4


def test_call_without_a_step_is_an_error():
    watch = Watch([call_of(0, x=torch.zeros(1))])
    with pytest.raises(ValueError, match="no step of the scheduler"):
        watch.visits()


def test_parts_of_a_latent_at_different_steps_have_no_row():
    watch = Watch()
    for run, behind in enumerate((0, 2)):
        watch.begin_run(6)
        for step in range(2, 6):
            arguments = {"x": Argument.of(torch.zeros(1)), "prompt": Argument.of("some")}
            watch.add_call("transformer", None, arguments)
            watch.add_step(step)
            watch.add_step(step - behind)
        assert watch.num_runs == run + 1
    visits = watch.visits()
    assert [visit.row for visit in visits] == [2, 3, 4, 5, None, None, None, None]
    assert len({visit.samples for visit in visits}) == 2, "runs share no stream"


# ---- what is kept --------------------------------------------------------------------------


def follow(letters, *calls):
    """Outputs of one site at rows 0, 1, ...: ``calls`` are the samples of each call."""
    follower = Follower({"attn": np.array(["CSR".index(each) for each in letters])})
    given = []
    for row, samples in enumerate(calls):
        follower.begin(Visit("transformer", row, tuple(samples)))
        values = torch.full((len(samples), 2), float(row))
        given.append(follower.end_site("attn", (values,))[0][:, 0].tolist())
    return given, [len(cold) for cold in follower.cold]


def test_row_that_reuses_gives_what_was_stored():
    assert follow("SRCR", "ab", "ab", "ab", "ab") == (
        [[0, 0], [0, 0], [2, 2], [0, 0]],
        [0] * 4,
    )


def test_stream_that_begins_late_computes_and_keeps():
    assert follow("SRRR", "a", "b", "b", "a") == ([[0], [1], [1], [0]], [0, 1, 0, 0])


def test_half_that_goes_on_alone_is_a_stream_of_its_own():
    expected = [[0, 0], [1], [2], [3, 3]], [0, 1, 0, 1]
    assert follow("SRSR", "ab", "b", "b", "ab") == expected


def test_half_that_joins_is_computed_with_the_other():
    assert follow("SRR", "a", "ab", "a") == ([[0], [1, 1], [0]], [0, 1, 0])


def test_site_that_left_out_its_attention_is_told_from_one_that_has_none():
    follower = Follower({})
    assert not follower.leaves_out("attn", 0)
    follower.num_attentions = 2
    assert not follower.leaves_out("attn", 0)
    assert follower.leaves_out("attn", 2)
    assert not follower.leaves_out("other", 2)


def test_output_without_samples_is_kept_for_the_call():
    follower = Follower({"attn": np.array([STORE, REUSE, REUSE])})
    given = []
    for row, samples in enumerate(("ab", "ab", "a")):
        follower.begin(Visit("transformer", row, tuple(samples)))
        given.append(follower.end_site("attn", (torch.full((7,), float(row)),))[0][0].item())
    assert given == [0, 0, 2]
    assert [len(cold) for cold in follower.cold] == [0, 0, 1]


def test_what_is_given_is_a_copy():
    follower = Follower({"attn": np.array([STORE, REUSE, REUSE])})
    values = torch.zeros(1, 2)
    for row in range(3):
        follower.begin(Visit("transformer", row, ("a",)))
        (given,) = follower.end_site("attn", (values,))
        assert (given == 0).all()
        given += 1
        values = torch.zeros(1, 2) + 5


def test_oracle_tells_one_row_from_the_next():
    trial = Trial(find("DiT, DDIM"))
    sites = [f"transformer_blocks.{i}.attn1" for i in range(3)]
    columns = trial.schedule.resolve(sites).actions.T
    right = follow_columns(trial, sites, columns)
    assert torch.equal(follow_columns(trial, sites, columns), right)
    assert not torch.equal(follow_columns(trial, sites, np.roll(columns, 1, axis=1)), right)
    assert not torch.equal(trial.plain.sample, right)


def follow_columns(trial, sites, columns):
    table = dict(zip(sites, columns, strict=True))
    return trial.follow({"transformer": table}).sample
