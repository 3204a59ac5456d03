"""Weights of forecasts that a table brings: against hooks, in files, and where they stop."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import BranchTable, Guidance, Schedule, ScheduleError
from tests.helpers.hook_oracle import GivenWeights
from tests.helpers.models import make_dit

STEPS = 8
PLAIN = Schedule.interval(STEPS, 3, warmup=2).forecast(1)
SITES = ("a", "b")


def weighed(seed, num_sites, plain=PLAIN, **facts):
    """A schedule written out, with random weights near the method's."""
    table = plain.resolve([f"site_{i}" for i in range(num_sites)])
    rng = np.random.default_rng(seed)
    shape = (*table.actions.shape, table.history)
    weights = np.where((table.orders > 0)[..., None], rng.normal(0.5, 0.5, shape), 0.0)
    return Schedule.from_actions(
        table.actions, orders=table.orders, weights=weights, method=table.method, **facts
    )


@pytest.fixture(scope="module")
def captured():
    example = make_dit(layers=2)
    return example, dqar_fx.transform(
        example.model, weighed(0, 2), example_inputs=example.inputs(0)
    )


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_given_weights_equal_hooks(captured, seed):
    example, first = captured
    denoiser = first.with_schedule(weighed(seed, 2))
    oracle = GivenWeights(example.model, denoiser.table)
    for step in range(STEPS):
        inputs = example.inputs(step)
        right = oracle(step, **inputs)
        torch.testing.assert_close(
            denoiser(**inputs).sample, right, rtol=1e-5, atol=1e-5 * float(right.abs().max())
        )


def test_given_weights_take_no_graph_of_their_own():
    """Other weights are other data: the denoiser of one table serves another."""
    example = make_dit(layers=2)
    denoiser = dqar_fx.transform(example.model, PLAIN)
    denoiser.prepare(**example.inputs(0))
    twin = denoiser.with_schedule(weighed(3, 2))
    for step in range(STEPS):
        denoiser(**example.inputs(step))
    known = set(denoiser.program.variants)
    for step in range(STEPS):
        twin(**example.inputs(step))
    assert set(twin.program.variants) == known


def test_given_weights_are_left_where_other_steps_are_kept():
    example = make_dit(layers=1)
    fitted, plain = weighed(1, 1), PLAIN
    found = []
    for schedule in (fitted, plain):
        denoiser = dqar_fx.transform(example.model, schedule)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it starts cold
            for step in range(3, STEPS):
                with denoiser.cache_context("cond", step_index=step):
                    outputs = denoiser(**example.inputs(step)).sample
                found.append(outputs) if step == 4 else None
    assert torch.equal(*found)  # one step is kept, not the two that weights were made for


def test_given_weights_without_calls_keep_those_of_the_same_steps():
    output = Schedule.from_actions("CCCCCRCC")
    guidance = Guidance(output=output, batched="conditional_first")
    example = make_dit(layers=1, batch=2)
    denoiser = dqar_fx.transform(
        example.model, weighed(2, 1), guidance=guidance, example_inputs=example.inputs(0)
    )
    table, other = denoiser.table, denoiser.unconditional.table
    assert table.kept[3] == other.kept[3]
    assert np.array_equal(table.weights[3], other.weights[3])
    assert table.kept[5] != other.kept[5]  # step 5 is not called
    assert not other.weights[5].any()


def test_given_weights_saved_and_loaded_are_the_same(tmp_path):
    table = weighed(5, 2).resolve(SITES)
    table.save(tmp_path / "table.json")
    loaded = BranchTable.load(tmp_path / "table.json")
    assert loaded == table
    assert np.array_equal(loaded.weights, table.weights)
    assert loaded != PLAIN.resolve(SITES)


def test_given_weights_are_told():
    table = weighed(5, 2).resolve(SITES)
    assert "weights [" in table.why(3, 0)
    assert "taylor, fitted, order 1" in str(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:, :, :1], r"weights need shape \[8, 2, 2\].*but have \[8, 2, 1\]"),
        (
            lambda w: np.where(w == 0, w, np.nan),
            "step 2, site 0 .*weights that are no numbers",
        ),
        (lambda w: np.ones_like(w), r"step 0, site 0 \(a\): weights, but no FORECAST"),
        (lambda w: w[0], r"weights need shape \[steps, sites, points\], but have \[2, 2\]"),
        (lambda w: "abc", "weights need numbers"),
    ],
)
def test_given_weights_that_do_not_fit_are_refused(change, message):
    table = weighed(5, 2).resolve(SITES)
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_actions(
            table.actions, orders=table.orders, weights=change(table.weights)
        ).resolve(SITES)
