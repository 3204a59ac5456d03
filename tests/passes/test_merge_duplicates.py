"""merge_duplicates computes equal expressions once, and random ones as often as written."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import merge_duplicates, outline_regions
from tests.helpers.rewrite_checks import (
    Stack,
    captured,
    captured_dit,
    check_rewrite,
    check_twice,
    check_values,
    operators,
    printed,
    rewritten,
    tokens,
)


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(tokens(8))
        self.other = nn.Parameter(tokens(8))

    def forward(self, x):
        return self.function(self, x)


def graph_of(function):
    return captured(Wrapped(function), tokens())


def repeated(self, x):
    """The same chain twice, and once with another constant."""
    first = (x.sin() * 2).exp() + self.weight
    second = (x.sin() * 2).exp() + self.weight
    third = (x.sin() * 3).exp() + self.weight
    return first, second.cos(), third


def test_merge_duplicates_equal_chains_merged():
    ops = {"aten.sin.default": -2, "aten.mul.Tensor": -1, "aten.exp.default": -1}
    out = check_rewrite(
        graph_of(repeated),
        merge_duplicates,
        [tokens()],
        rewrites=5,
        ops={**ops, "aten.add.Tensor": -1},
    )
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    weight: "f32[8]" = self.weight
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    mul: "f32[2, 3, 8]" = aten.mul.Tensor(sin, 2)
    exp: "f32[2, 3, 8]" = aten.exp.default(mul)
    add: "f32[2, 3, 8]" = aten.add.Tensor(exp, weight)
    mul_2: "f32[2, 3, 8]" = aten.mul.Tensor(sin, 3)
    exp_2: "f32[2, 3, 8]" = aten.exp.default(mul_2)
    add_2: "f32[2, 3, 8]" = aten.add.Tensor(exp_2, weight)
    cos: "f32[2, 3, 8]" = aten.cos.default(add)
    return (add, cos, add_2)""",
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: (x.sin() * 2, x.sum() * 2.0),
        lambda m, x: (x * m.weight, x * m.other),
        lambda _, x: (x.sum(0), x.sum(1)),
        lambda _, x: (x - 1, 1 - x),
        lambda _, x: (x.to(torch.float16), x.to(torch.bfloat16)),
        lambda _, x: (torch.full([2], 1.0), torch.full([2], 1)),
        lambda _, x: (x.sum(dtype=torch.float64), x.sum(dtype=torch.float16)),
    ],
    ids=["operator", "parameter", "dimension", "order", "dtype", "constant", "keyword"],
)
def test_merge_duplicates_different_expressions_left_alone(function):
    check_rewrite(graph_of(function), merge_duplicates, [tokens()], rewrites=0, ops={})


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: (torch.rand_like(x), torch.rand_like(x)),
        lambda _, x: (torch.dropout(x, 0.5, True), torch.dropout(x, 0.5, True)),
        lambda _, x: (torch.bernoulli(x.sigmoid()), torch.bernoulli(x.cos().abs())),
    ],
    ids=["rand_like", "dropout", "bernoulli"],
)
def test_merge_duplicates_random_operators_left_alone(function):
    assert merge_duplicates(graph_of(function)) == 0


def test_merge_duplicates_submodule_calls_left_alone():
    gm = rewritten(captured(Stack(2), tokens()), outline_regions)
    check_rewrite(gm, merge_duplicates, [tokens()], rewrites=0, ops={})


def test_merge_duplicates_several_users_all_read_the_first():
    def spread(_, x):
        return x.sin() + x.sin().cos(), x.sin()

    out = check_rewrite(graph_of(spread), merge_duplicates, [tokens()], rewrites=2)
    (sine,) = out.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
    assert len(sine.users) == 3


def test_merge_duplicates_parts_of_a_split_merged():
    def halves(_, x):
        return x.chunk(2, -1)[0] + x.chunk(2, -1)[0], x.chunk(2, -1)[1]

    out = rewritten(graph_of(halves), merge_duplicates)
    assert operators(out)["aten.chunk.default"] == 1
    check_values(out(tokens()), graph_of(halves)(tokens()))


def test_merge_duplicates_dit_sinusoids_computed_once():
    gm, inputs = captured_dit()
    out = rewritten(gm, merge_duplicates)
    assert operators(gm)["aten.sin.default"] == 3
    assert operators(out)["aten.sin.default"] == 1
    check_values(out(*inputs), gm(*inputs))


def test_merge_duplicates_among_some_nodes_leaves_the_others_alone():
    gm = graph_of(lambda _, x: (x.sin() + x.sin(), x.cos() + x.cos()))
    sines = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
    assert merge_duplicates(gm, among=sines) == 1
    assert merge_duplicates(gm, among=()) == 0
    assert operators(gm)["aten.sin.default"] == 1
    assert operators(gm)["aten.cos.default"] == 2


def test_merge_duplicates_twice_finds_nothing():
    check_twice(graph_of(repeated), merge_duplicates)
