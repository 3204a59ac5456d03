"""merge_equal_parameters lets the conditioning read one of several equal tensors."""

import copy
from collections import Counter

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dqar_fx.passes import hoist_conditioning, merge_equal_parameters
from dqar_fx.passes.support.equal_tensors import group_equal
from tests.helpers.models import make_dit
from tests.helpers.rewrite_checks import (
    captured_by_name,
    captured_dit,
    check_rewrite,
    check_twice,
    check_values,
    operators,
    printed,
    rewritten,
    tokens,
)


class Modulated(nn.Module):
    """Two embedders of a timestep, and as many linears on the latent."""

    def __init__(self, *, equal):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        if equal:
            self.second.load_state_dict(self.first.state_dict())
            self.right.load_state_dict(self.left.state_dict())

    def forward(self, x, timestep):
        return self.left(x) + self.first(timestep), self.right(x) * self.second(timestep)


def graph_of(*, equal):
    return captured_by_name(Modulated(equal=equal), x=tokens(), timestep=tokens(2, 3, 8))


def test_merge_equal_parameters_equal_ones_of_the_conditioning_merged():
    inputs = [tokens(), tokens(2, 3, 8)]
    out = check_rewrite(
        graph_of(equal=True), merge_equal_parameters, inputs, rewrites=2, ops={}
    )
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", timestep: "f32[2, 3, 8]"):
    first_weight: "f32[8, 8]" = self.first.weight
    first_bias: "f32[8]" = self.first.bias
    left_weight: "f32[8, 8]" = self.left.weight
    left_bias: "f32[8]" = self.left.bias
    right_weight: "f32[8, 8]" = self.right.weight
    right_bias: "f32[8]" = self.right.bias
    linear: "f32[2, 3, 8]" = aten.linear.default(x, left_weight, left_bias)
    linear_1: "f32[2, 3, 8]" = aten.linear.default(timestep, first_weight, first_bias)
    add: "f32[2, 3, 8]" = aten.add.Tensor(linear, linear_1)
    linear_2: "f32[2, 3, 8]" = aten.linear.default(x, right_weight, right_bias)
    linear_3: "f32[2, 3, 8]" = aten.linear.default(timestep, first_weight, first_bias)
    mul: "f32[2, 3, 8]" = aten.mul.Tensor(linear_2, linear_3)
    return (add, mul)""",
    )


def test_merge_equal_parameters_then_hoisting_computes_once():
    gm = rewritten(graph_of(equal=True), merge_equal_parameters, hoist_conditioning)
    assert operators(gm.conditioning_0)["aten.linear.default"] == 1


def test_merge_equal_parameters_others_left_alone():
    check_rewrite(
        graph_of(equal=False), merge_equal_parameters, [tokens(), tokens(2, 3, 8)], rewrites=0
    )


def test_merge_equal_parameters_twice_finds_nothing():
    check_twice(graph_of(equal=True), merge_equal_parameters)


def test_merge_equal_parameters_without_values_left_alone():
    model = Modulated(equal=True).to("meta")
    inputs = {name: tokens(2, 3, 8).to("meta") for name in ("x", "timestep")}
    assert merge_equal_parameters(captured_by_name(model, **inputs)) == 0


def test_merge_equal_parameters_dit_of_own_embedders_left_alone():
    gm, inputs = captured_dit()
    check_rewrite(gm, merge_equal_parameters, inputs, rewrites=0)


def test_merge_equal_parameters_copied_embedders_are_one():
    case = make_dit()
    for block in case.model.transformer_blocks[1:]:
        block.norm1.emb = copy.deepcopy(case.model.transformer_blocks[0].norm1.emb)
    gm = captured_by_name(case.model, **case.inputs(0))
    passes = (merge_equal_parameters, hoist_conditioning)
    merged = rewritten(gm, *passes)
    inputs = case.inputs(0).values()
    check_values(merged(*inputs), gm(*inputs))
    stages = [m for n, m in merged.named_children() if "conditioning_" in n]
    found = sum(map(operators, stages), Counter())
    # two linears of the one embedder, one in each of 5 blocks, two after them
    assert found["aten.embedding.default"] == 1
    assert found["aten.linear.default"] == 2 + 5 + 1


# ---- what is equal -----------------------------------------------------------------------

PLAIN = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.clone().t().contiguous().t(),
        PLAIN.double(),
        PLAIN.reshape(4, 3),
        PLAIN.int(),
        -PLAIN,
        PLAIN.to("meta"),
    ],
)
def test_group_equal_of_another_layout_apart(other):
    assert group_equal([PLAIN, other]) == []


def test_group_equal_compares_bits():
    zero, nan = torch.zeros(3), torch.full((3,), torch.nan)
    assert group_equal([zero, -zero, zero.clone(), nan, nan.clone()]) == [[0, 2], [3, 4]]


def test_group_equal_views_of_one_memory_also_without_values():
    meta = torch.empty(3, device="meta")
    assert group_equal([meta, torch.empty(3, device="meta"), meta.view(3)]) == [[0, 2]]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.complex64]
)
@pytest.mark.parametrize("shape", [(), (1,), (5, 3)])
def test_group_equal_of_any_dtype_and_shape(dtype, shape):
    value = torch.ones(shape).to(dtype)
    assert group_equal([value, value.clone(), torch.zeros(shape).to(dtype)]) == [[0, 1]]


def test_group_equal_of_nothing():
    assert group_equal([]) == []
    assert group_equal([torch.empty(0), torch.empty(0)]) == []


def test_group_equal_differing_in_one_value_between_samples():
    a = torch.zeros(1000)
    b = a.clone()
    b[1] = 1
    assert group_equal([a, b, a.clone()]) == [[0, 2]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=8))
def test_group_equal_agrees_with_pairwise_comparison(values):
    tensors = [torch.tensor(v).float() for v in values]
    groups = group_equal(tensors)
    for i, a in enumerate(values):
        mine = next((g for g in groups if i in g), [i])
        assert mine == [j for j, b in enumerate(values) if a == b]
