"""turn_skinny_linears turns float32 products of few rows, and nothing else."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import turn_skinny_linears
from tests.helpers.rewrite_checks import (
    captured,
    captured_dit,
    check_metadata,
    check_rewrite,
    check_twice,
    check_values,
    operators,
    printed,
    rewritten,
    tokens,
)

CLOSE = 1e-5
LINEAR = "aten.linear.default"


class Modulation(nn.Module):
    """A linear of a condition, read twice."""

    def __init__(self, bias=True):
        super().__init__()
        self.linear = nn.Linear(384, 96, bias=bias)

    def forward(self, x):
        y = self.linear(x)
        return y.sin(), y + 1


def test_turn_skinny_linears_with_bias_turned():
    x = tokens(2, 384)
    gm = captured(Modulation(), x)
    ops = {LINEAR: -1, "aten.mm.default": 1, "aten.t.default": 2, "aten.add.Tensor": 1}
    ops["aten.contiguous.default"] = 1
    out = check_rewrite(gm, turn_skinny_linears, [x], rewrites=1, ops=ops, relative=CLOSE)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 384]"):
    linear_weight: "f32[96, 384]" = self.linear.weight
    linear_bias: "f32[96]" = self.linear.bias
    t_default: "f32[384, 2]" = aten.t.default(x)
    mm_default: "f32[96, 2]" = aten.mm.default(linear_weight, t_default)
    t_default_1: "f32[2, 96]" = aten.t.default(mm_default)
    add_tensor: "f32[2, 96]" = aten.add.Tensor(t_default_1, linear_bias)
    contiguous_default: "f32[2, 96]" = aten.contiguous.default(add_tensor)
    sin: "f32[2, 96]" = aten.sin.default(contiguous_default)
    add: "f32[2, 96]" = aten.add.Tensor(contiguous_default, 1)
    return (sin, add)""",
    )


def test_turn_skinny_linears_without_bias_turned():
    x = tokens(2, 384)
    gm = captured(Modulation(bias=False), x)
    ops = {LINEAR: -1, "aten.mm.default": 1, "aten.t.default": 2}
    ops["aten.contiguous.default"] = 1
    check_rewrite(gm, turn_skinny_linears, [x], rewrites=1, ops=ops, relative=CLOSE)


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_turn_skinny_linears_few_rows_turned(rows):
    x = tokens(rows, 384)
    gm = captured(Modulation(), x)
    check_rewrite(gm, turn_skinny_linears, [x], rewrites=1, relative=CLOSE)


@pytest.mark.parametrize(
    "x",
    [
        tokens(1, 384),
        tokens(17, 384),
        tokens(2, 1, 384),
        tokens(384),
        tokens(2, 384).bfloat16(),
        tokens(2, 384).double(),
    ],
    ids=["one_row", "seventeen_rows", "three_dimensions", "one_dimension", "bf16", "fp64"],
)
def test_turn_skinny_linears_other_shapes_and_dtypes_left_alone(x):
    gm = captured(Modulation().to(x.dtype), x)
    check_rewrite(gm, turn_skinny_linears, [x], rewrites=0, ops={})


def test_turn_skinny_linears_several_users_all_read_the_turned_one():
    x = tokens(2, 384)
    out = rewritten(captured(Modulation(), x), turn_skinny_linears)
    (total,) = {n.args[0] for n in out.graph.output_node().all_input_nodes}
    assert total.name.startswith("contiguous")
    assert len(total.users) == 2


def test_turn_skinny_linears_shared_weight_turned_at_each_use():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(self.linear(x).sin())

    gm = captured(Shared(), tokens(2, 8))
    check_rewrite(gm, turn_skinny_linears, [tokens(2, 8)], rewrites=2, relative=CLOSE)


def test_turn_skinny_linears_dit_conditioning_turned():
    gm, inputs = captured_dit()
    skinny = sum(
        node.meta["val"].dim() == 2
        for node in gm.graph.find_nodes(
            op="call_function", target=torch.ops.aten.linear.default
        )
    )
    out = rewritten(gm, turn_skinny_linears)
    assert skinny > 0
    assert operators(gm)[LINEAR] - operators(out)[LINEAR] == skinny
    check_values(out(*inputs), gm(*inputs), relative=CLOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_turn_skinny_linears_metadata_of_the_new_nodes_is_true(bias):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(384, 96, bias=bias)

        def forward(self, x):
            return self.linear(x)

    x = tokens(2, 384)
    check_metadata(rewritten(captured(Alone(), x), turn_skinny_linears), [x])


def test_turn_skinny_linears_twice_finds_nothing():
    check_twice(captured(Modulation(), tokens(2, 384)), turn_skinny_linears)


class Viewed(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.linear = nn.Linear(8, 6, bias=bias)

    def forward(self, x):
        return self.linear(x).view(-1)


@pytest.mark.parametrize("bias", [True, False])
def test_turn_skinny_linears_result_can_be_viewed_flat(bias):
    gm = captured(Viewed(bias), tokens(2, 8))
    check_rewrite(gm, turn_skinny_linears, [tokens(2, 8)], rewrites=1, relative=1e-5)


class Gram(nn.Module):
    def forward(self, x):
        return nn.functional.linear(x, x)


def test_turn_skinny_linears_gram_matrix():
    gm = captured(Gram(), tokens(4, 8))
    out = rewritten(gm, turn_skinny_linears)
    check_values(out(tokens(4, 8)), gm(tokens(4, 8)), 1e-5)
