"""The transformed denoiser against the hook oracle, bit for bit in eager mode."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

STEPS = 6
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", slow_but("sd3", of=MAKERS))
def test_transform_all_compute_equals_the_original_bit_for_bit(name, dtype):
    case = MAKERS[name]().to(dtype)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(STEPS))
    with torch.no_grad():
        for step in range(STEPS):
            inputs = case.inputs(step)
            expected = case.model(**inputs).sample
            assert torch.equal(denoiser(**inputs).sample, expected)
            assert expected.std() > 0.01


@pytest.mark.parametrize("dtype", slow_but(torch.float32, of=DTYPES), ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", slow_but("dit", "pixart", of=MAKERS))
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.linear(STEPS, warmup=2),
        Schedule.linear(STEPS, warmup=1, full_from=3, max_age=2),
        Schedule.interval(STEPS, 3, warmup=1),
        Schedule.from_actions("SRRSRR"),
    ],
    ids=["linear", "linear-aged", "interval", "written"],
)
def test_transform_reuse_equals_the_hook_oracle(name, dtype, schedule):
    case = MAKERS[name]().to(dtype)
    oracle = Oracle(case.model)
    denoiser = dqar_fx.transform(case.model, schedule)
    for step in range(STEPS):
        inputs = case.inputs(step)
        result = denoiser(**inputs).sample
        assert torch.equal(result, oracle(denoiser.table.actions[step], **inputs)), step


def test_transform_reuse_changes_the_result():
    """The comparisons above can fail: reusing is not the same as computing."""
    case = make_dit()
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SR"))
    denoiser(**case.inputs(0))
    with torch.no_grad():
        exact = case.model(**case.inputs(1)).sample
    assert (denoiser(**case.inputs(1)).sample - exact).abs().max() > 1e-3


class Drawn:
    """Denoisers of one model, captured once per batch size."""

    LAYERS = 5

    def __init__(self) -> None:
        self.cases = {batch: make_dit(batch, self.LAYERS) for batch in (1, 2, 3)}
        self.denoisers = {
            batch: dqar_fx.transform(
                case.model, Schedule.compute_all(1), example_inputs=case.inputs(0)
            )
            for batch, case in self.cases.items()
        }


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return Drawn()


@st.composite
def legal_actions(draw: st.DrawFn) -> np.ndarray:
    """A legal table: any reuse after a first step that computes, stores where one reads."""
    steps = draw(st.integers(1, 5))
    cells = st.lists(st.booleans(), min_size=Drawn.LAYERS, max_size=Drawn.LAYERS)
    reuse = np.array([[False] * Drawn.LAYERS] + [draw(cells) for _ in range(steps)])
    actions = np.where(reuse, 2, 0)
    for step, site in np.argwhere(reuse):
        last = max(s for s in range(step) if not reuse[s, site])
        actions[last, site] = 1
    return actions


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(actions=legal_actions(), batch=st.integers(1, 3), seed=st.integers(0, 9))
def test_transform_any_legal_table_equals_the_hook_oracle(drawn, actions, batch, seed):
    case = drawn.cases[batch]
    denoiser = drawn.denoisers[batch].with_schedule(Schedule.from_actions(actions))
    oracle = Oracle(case.model)
    for step, row in enumerate(actions):
        inputs = case.inputs(step, seed)
        assert torch.equal(denoiser(**inputs).sample, oracle(row, **inputs))


def test_transform_leaves_the_model_as_it_was():
    case = make_dit()
    before = [(p.data_ptr(), p.requires_grad) for p in case.model.parameters()]
    weights = {name: p.clone() for name, p in case.model.named_parameters()}
    dqar_fx.transform(case.model, Schedule.linear(4, warmup=1))(**case.inputs(0))
    assert [(p.data_ptr(), p.requires_grad) for p in case.model.parameters()] == before
    assert all(torch.equal(p, weights[name]) for name, p in case.model.named_parameters())
    assert not case.model._forward_hooks


def test_transform_shares_parameters_with_the_model():
    case = make_dit()
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(1))
    theirs = {p.data_ptr() for p in case.model.parameters()}
    assert {p.data_ptr() for p in denoiser.parameters()} == theirs


def test_transform_twice_gives_equal_tables_and_graphs():
    case = make_dit()
    one, two = (
        dqar_fx.transform(
            case.model, Schedule.linear(4, warmup=1), example_inputs=case.inputs(0)
        )
        for _ in range(2)
    )
    assert one.table == two.table
    for step in range(4):
        assert one.row_graph(step).code == two.row_graph(step).code


def test_transform_allocates_the_slot_bytes_it_announces():
    case = make_dit()
    schedule = Schedule.from_actions(np.array([[1, 0, 1, 0, 0], [2, 0, 2, 0, 0]]))
    denoiser = dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0))
    announced = denoiser.cache_bytes
    assert announced == 2 * (2 * 36 * 60 * 4)
    denoiser(**case.inputs(0))
    (stream,) = denoiser.program.streams.values()
    assert stream.slots.nbytes == announced


def test_transform_reuse_row_has_no_attention_left():
    case = make_dit(layers=3)
    denoiser = dqar_fx.transform(
        case.model, Schedule.from_actions("SR"), example_inputs=case.inputs(0)
    )

    stored, reused = (
        Counter(node.target for node in denoiser.row_graph(step).graph.nodes)
        for step in (0, 1)
    )
    aten = torch.ops.aten
    assert stored - reused == {
        aten.scaled_dot_product_attention.default: 3,
        aten.linear.default: 4 * 3,
        aten.layer_norm.default: 3,
        aten.copy_.default: 3,
        **{target: n for target, n in (stored - reused).items() if is_cheap(target)},
    }
    assert reused[aten.scaled_dot_product_attention.default] == 0
    assert reused[aten.copy_.default] == 0


def is_cheap(target) -> bool:
    """Whether a target only moves, scales or adds: what may go with an attention."""
    words = ("view", "reshape", "transpose", "unsqueeze", "mul", "add", "getitem", "weight")
    return any(word in str(target) for word in (*words, "bias", "slot"))
