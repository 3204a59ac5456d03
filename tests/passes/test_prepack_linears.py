"""prepack_linears lets linears of many rows take packed weights, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dqar_fx.capture.capture import capture
from dqar_fx.passes import outline_regions, prepack_linears
from dqar_fx.passes.prepack_linears import pack_weight, packed_linear
from dqar_fx.passes.support.equal_tensors import find_tensor
from dqar_fx.passes.support.runner import fork, run_pass
from tests.helpers.rewrite_checks import (
    check_metadata,
    check_rewrite,
    check_twice,
    printed,
    rewritten,
    tokens,
)

CLOSE = 1e-5
LINEAR, PACKED = "aten.linear.default", "dqar_fx.packed_linear.default"
GELU = "aten.gelu.default"
WIDTH, INNER, ROWS = 8, 32, 20


class FeedForward(nn.Module):
    """Two linears with something between them."""

    def __init__(self, between=lambda x: F.gelu(x, approximate="tanh"), bias=True):
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER, bias=bias)
        self.down = nn.Linear(INNER, WIDTH, bias=bias)
        self.between = between

    def forward(self, x):
        return (self.down(self.between(self.up(x))),)


class Tied(nn.Module):
    """A weight with two readers."""

    def __init__(self, reader):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.reader = reader

    def forward(self, x):
        return self.linear(x), self.reader(x, self.linear.weight)


def region_of(model, *inputs):
    """The model as one region, and what it takes: parameters are inputs."""
    gm = fork(capture(model.eval(), inputs, {}).gm)
    run_pass(gm, outline_regions)
    (call,) = gm.graph.find_nodes(op="call_module")
    paths = [str(node.target) for node in call.args if node.op == "get_attr"]
    tensors = [find_tensor(gm, path).detach() for path in paths]
    return fork(gm.get_submodule(call.target)), [*inputs, *tensors]


def packed_flags(gm):
    return [bool(n.meta.get("packed")) for n in gm.graph.find_nodes(op="placeholder")]


def test_prepack_linears_takes_the_activation_along():
    gm, inputs = region_of(FeedForward(), tokens(2, ROWS, WIDTH))
    ops = {LINEAR: -2, GELU: -1, PACKED: 2}
    out = check_rewrite(gm, prepack_linears, inputs, rewrites=2, ops=ops, relative=CLOSE)
    assert packed_flags(out) == [False, True, False, True, False]
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 20, 8]", up_weight: "f32[32, 8]", up_bias: "f32[32]",
    down_weight: "f32[8, 32]", down_bias: "f32[8]"):
    packed_linear_default: "f32[2, 20, 32]" =
        torch.ops.dqar_fx.packed_linear.default(x, up_weight, up_bias, 'gelu', 'tanh')
    packed_linear_default_1: "f32[2, 20, 8]" =
        torch.ops.dqar_fx.packed_linear.default(packed_linear_default, down_weight,
        down_bias, 'none', 'none')
    return (packed_linear_default_1,)""",
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("between", "is_taken"),
    [
        (F.gelu, True),
        (F.silu, True),
        (F.relu, False),
        (torch.tanh, False),
        (lambda x: F.gelu(x) + x, False),
    ],
    ids=["gelu", "silu", "relu", "tanh", "read_twice"],
)
def test_prepack_linears_by_packed_weights_gives_the_same(between, is_taken, bias):
    gm, inputs = region_of(FeedForward(between, bias), tokens(2, ROWS, WIDTH))
    out = check_rewrite(gm, prepack_linears, inputs, rewrites=2, relative=CLOSE)
    given = zip(inputs, packed_flags(out), strict=True)
    packed = [pack_weight(x) if is_packed else x for x, is_packed in given]
    assert sum(x.is_mkldnn for x in packed) == 2
    expected = gm(*inputs)[0]
    assert (out(*packed)[0] - expected).abs().max() <= CLOSE * expected.abs().max()
    names = [str(node.target) for node in out.graph.nodes if node.op == "call_function"]
    assert (names == [PACKED] * 2) == is_taken


@pytest.mark.parametrize(
    ("x", "model"),
    [
        (tokens(16, WIDTH), FeedForward()),
        (tokens(2, ROWS, WIDTH).double(), FeedForward().double()),
        (tokens(2, ROWS, WIDTH).bfloat16(), FeedForward().bfloat16()),
        (tokens(2, ROWS, WIDTH), Tied(lambda x, w: x @ w)),
        (tokens(2, ROWS, WIDTH), Tied(lambda x, w: F.linear(x[0, :2], w))),
        (tokens(2, WIDTH, WIDTH), Tied(lambda x, w: F.linear(w, x[0]))),
    ],
    ids=["few_rows", "double", "bfloat16", "other_reader", "few_too", "as_input"],
)
def test_prepack_linears_others_unchanged(x, model):
    gm, inputs = region_of(model, x)
    out = check_rewrite(gm, prepack_linears, inputs, rewrites=0, ops={})
    assert not any(packed_flags(out))


class WithBias(nn.Module):
    """A linear with a bias of some shape."""

    def __init__(self, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(INNER, WIDTH))
        self.register_buffer("bias", bias)

    def forward(self, x):
        return (F.linear(x, self.weight, self.bias),)


@pytest.mark.parametrize(
    ("bias", "rewrites"),
    [
        (torch.randn(INNER), 1),
        (torch.randn(2 * INNER)[::2], 0),
        (torch.randn(1), 0),
        (torch.tensor(0.5), 0),
    ],
    ids=["plain", "strided", "one", "scalar"],
)
def test_prepack_linears_takes_biases_that_the_kernel_reads(bias, rewrites):
    gm, inputs = region_of(WithBias(bias), tokens(2, ROWS, WIDTH))
    inputs[-1] = bias  # as it is
    check_rewrite(gm, prepack_linears, inputs, rewrites=rewrites, relative=CLOSE)


@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
def test_packed_linear_hides_no_nan(activation):
    x, weight = torch.randn(ROWS, WIDTH), torch.randn(INNER, WIDTH)
    x[0, 0], x[1, 0] = float("nan"), float("inf")
    found = packed_linear(x, pack_weight(weight), None, activation, "tanh")
    plain = packed_linear(x, weight, None, activation, "tanh")
    assert torch.equal(found.isfinite(), plain.isfinite())


def test_prepack_linears_two_linears_of_one_weight():
    gm, inputs = region_of(Tied(F.linear), tokens(2, ROWS, WIDTH))
    check_rewrite(gm, prepack_linears, inputs, rewrites=2, relative=CLOSE)


def test_prepack_linears_weight_that_flows_unchanged():
    gm, inputs = region_of(FeedForward(), tokens(2, ROWS, WIDTH))
    for node in gm.graph.find_nodes(op="placeholder"):
        node.meta.pop("parameter", None)
    check_rewrite(gm, prepack_linears, inputs, rewrites=0, ops={})


def test_prepack_linears_twice_and_metadata():
    gm, inputs = region_of(FeedForward(), tokens(2, ROWS, WIDTH))
    check_twice(gm, prepack_linears)
    check_metadata(rewritten(gm, prepack_linears), inputs)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    width=st.integers(1, 40),
    outputs=st.integers(1, 40),
    activation=st.sampled_from(["none", "gelu", "swish"]),
    approximate=st.sampled_from(["none", "tanh"]),
    with_bias=st.booleans(),
    is_strided=st.booleans(),
)
def test_packed_linear_equals_the_plain_one(
    rows, width, outputs, activation, approximate, with_bias, is_strided
):
    torch.manual_seed(rows + 71 * width + 71 * 41 * outputs)
    x = torch.randn(width, rows).t() if is_strided else torch.randn(rows, width)
    weight = torch.randn(outputs, width)
    bias = torch.randn(outputs) if with_bias else None
    plain = packed_linear(x, weight, bias, activation, approximate)
    found = packed_linear(x, pack_weight(weight), bias, activation, approximate)
    assert (found.shape, found.stride()) == (plain.shape, plain.stride())
    assert (found - plain).abs().max() <= CLOSE * max(1.0, float(plain.abs().max()))
