"""keep="kv" against the oracle of fresh queries on kept keys and values, bit for bit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import KeyValueOracle, Oracle
from tests.helpers.models import MAKERS, make_pixart, make_sd3
from tests.helpers.slow_cases import slow_but

STEPS = 6
SITES = {"dit": 5, "pixart": 3, "sd3": 5, "flux": 5}
SCHEDULES = {
    "linear": Schedule.linear(STEPS, warmup=2),
    "interval": Schedule.interval(STEPS, 3, warmup=1),
    "written": Schedule.from_actions("SRRSRR"),
}


@pytest.fixture(scope="module")
def prepared():
    """Denoisers that keep keys and values, captured once per model and dtype."""
    made = {}

    def prepare(name, dtype):
        if (name, dtype) not in made:
            case = MAKERS[name]().to(dtype)
            made[name, dtype] = (
                case,
                dqar_fx.transform(
                    case.model,
                    Schedule.compute_all(1),
                    keep="kv",
                    example_inputs=case.inputs(0),
                ),
            )
        return made[name, dtype]

    return prepare


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", slow_but("dit", of=MAKERS))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_keep_kv_steps_equal_the_oracle(prepared, name, dtype, schedule):
    case, captured = prepared(name, dtype)
    denoiser, oracle = captured.with_schedule(SCHEDULES[schedule]), KeyValueOracle(case.model)
    assert denoiser.table.actions.shape == (STEPS, SITES[name])
    for step in range(STEPS):
        inputs = case.inputs(step)
        result = denoiser(**inputs).sample
        assert torch.equal(result, oracle(denoiser.table.actions[step], **inputs)), step


@pytest.mark.parametrize("name", MAKERS)
def test_keep_kv_computing_equals_the_original(prepared, name):
    case, captured = prepared(name, torch.float32)
    denoiser = captured.with_schedule(Schedule.from_actions("SRC"))
    for step in range(3):
        inputs = case.inputs(step)
        with torch.no_grad():
            expected = case.model(**inputs).sample
        assert torch.equal(denoiser(**inputs).sample, expected) == (step != 1)


def test_keep_kv_reuse_is_another_result_than_that_of_a_kept_output(prepared):
    """The two ways to reuse are told apart by the comparisons above."""
    case, captured = prepared("dit", torch.float32)
    denoiser, output = captured.with_schedule(Schedule.from_actions("SR")), Oracle(case.model)
    for step, action in enumerate((1, 2)):
        inputs = case.inputs(step)
        found, other = denoiser(**inputs).sample, output([action] * 5, **inputs)
    with torch.no_grad():
        exact = case.model(**inputs).sample
    assert (found - other).abs().max() > 1e-3
    assert (found - exact).abs().max() > 1e-3


@st.composite
def legal_actions(draw, sites=5):
    """A legal table: any reuse after a first step that computes, stores where one reads."""
    steps = draw(st.integers(1, 4))
    cells = st.lists(st.booleans(), min_size=sites, max_size=sites)
    reuse = np.array([[False] * sites] + [draw(cells) for _ in range(steps)])
    actions = np.where(reuse, 2, 0)
    for step, site in np.argwhere(reuse):
        actions[max(s for s in range(step) if not reuse[s, site]), site] = 1
    return actions


@settings(max_examples=30, deadline=None)
@given(actions=legal_actions(), seed=st.integers(0, 9))
def test_keep_kv_any_legal_table_equals_the_oracle(prepared, actions, seed):
    case, captured = prepared("dit", torch.float32)
    denoiser = captured.with_schedule(Schedule.from_actions(actions))
    oracle = KeyValueOracle(case.model)
    for step, row in enumerate(actions):
        inputs = case.inputs(step, seed)
        assert torch.equal(denoiser(**inputs).sample, oracle(row, **inputs))


def test_keep_kv_second_trajectory_reads_nothing_of_the_first(prepared):
    case, captured = prepared("sd3", torch.float32)
    denoiser = captured.with_schedule(Schedule.from_actions("SRR"))
    for seed in range(2):
        oracle = KeyValueOracle(case.model)
        for step in range(3):
            inputs = case.inputs(step, seed)
            expected = oracle(denoiser.table.actions[step], **inputs)
            assert torch.equal(denoiser(**inputs).sample, expected)


def test_keep_kv_reuse_row_lacks_the_projections_of_keys_and_values_alone(prepared):
    denoiser = prepared("dit", torch.float32)[1].with_schedule(Schedule.from_actions("CSR"))
    computed, stored, reused = (
        Counter(node.target for node in denoiser.row_graph(step).graph.nodes)
        for step in range(3)
    )
    aten = torch.ops.aten
    assert stored[aten.copy_.default] == 2 * 5
    for row in (computed, stored):
        assert row[aten.linear.default] - reused[aten.linear.default] == 2 * 5
        assert row[aten.layer_norm.default] == reused[aten.layer_norm.default]
    assert reused[aten.scaled_dot_product_attention.default] == 5
    assert reused[aten.copy_.default] == computed[aten.copy_.default] == 0


def test_keep_kv_takes_two_slots_for_one(prepared):
    denoiser = prepared("dit", torch.float32)[1].with_schedule(Schedule.from_actions("SR"))
    assert denoiser.cache_bytes == 2 * 5 * (2 * 36 * 60 * 4)


def test_keep_kv_text_that_is_projected_once_is_a_near_miss(prepared):
    found = prepared("pixart", torch.float32)[1].explain()
    assert [site.path for site in found.sites] == [
        f"transformer_blocks.{layer}.attn1" for layer in range(3)
    ]
    for layer in range(3):
        told = f"keys and values of transformer_blocks.{layer}.attn2 are not computed by it"
        (miss,) = (miss for miss in found.near_misses if told in str(miss))
        assert "saves nothing" in miss.reason


def test_keep_kv_of_cross_attention_alone_says_why_it_cannot():
    case = make_pixart()
    with pytest.raises(dqar_fx.SiteError, match="selects no site"):
        dqar_fx.transform(
            case.model,
            Schedule.from_actions("SR"),
            keep="kv",
            sites="cross",
            example_inputs=case.inputs(0),
        )


def test_keep_kv_of_chosen_sites_leaves_the_others_computed():
    case = make_sd3()
    denoiser = dqar_fx.transform(
        case.model, Schedule.from_actions("SRR"), keep="kv", sites="joint"
    )
    oracle = KeyValueOracle(case.model)
    for step in range(3):
        inputs = case.inputs(step)
        result = denoiser(**inputs).sample
        joint = iter(denoiser.table.actions[step])
        row = [0 if site == 1 else next(joint) for site in range(5)]
        assert torch.equal(result, oracle(row, **inputs))
    assert denoiser.table.actions.shape == (3, 4)
