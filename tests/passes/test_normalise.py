"""normalise drops what does nothing, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.capture.capture import capture
from dqar_fx.passes import normalise
from tests.helpers.rewrite_checks import check_rewrite, check_twice, printed, tokens


class Idle(nn.Module):
    """Conversions to what it is, inactive dropout, factors of 1, an unused value."""

    def forward(self, x):
        unused = x.exp()
        x = x.to(torch.float32).detach()
        x = F.dropout(x, 0.5, training=False) / 1.0
        del unused
        return x.sin() * 1


class Busy(nn.Module):
    """What looks idle and is not."""

    def forward(self, x):
        x = (x + 0.0).to(torch.float64).to(torch.float32)
        x = x.transpose(1, 2).contiguous().clone()
        return x * torch.ones(1) * -1.0


class Constant(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def raw(model):
    return capture(model.eval(), (tokens(),), {}).gm


def test_normalise_idle_nodes_removed():
    ops = {
        "aten.to.dtype": -1,
        "aten.detach.default": -1,
        "aten.dropout.default": -1,
        "aten.div.Tensor": -1,
        "aten.mul.Tensor": -1,
        "aten.exp.default": -1,
        "aten._assert_tensor_metadata.default": -1,
    }
    gm = raw(Idle())
    removed = -sum(ops.values())
    out = check_rewrite(gm, normalise, [tokens()], rewrites=removed, ops=ops)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    return (sin,)""",
    )


def test_normalise_busy_nodes_left_alone():
    gm = raw(Busy())
    checks = gm.graph.find_nodes(
        op="call_function", target=torch.ops.aten._assert_tensor_metadata.default
    )
    out = check_rewrite(gm, normalise, [tokens()], rewrites=len(checks))
    assert len(out.graph.nodes) == len(gm.graph.nodes) - len(checks)


def test_normalise_negative_zero_stays():
    gm = raw(Constant(lambda x: x * 1.0 + 0.0))
    out = check_rewrite(gm, normalise, [tokens()], rewrites=1, ops={"aten.mul.Tensor": -1})
    (result,) = out(torch.full((2, 3, 8), -0.0))
    assert not result.signbit().any()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * True,
        lambda x: x / 1,
        lambda x: F.dropout(x, 0.0, training=True),
        lambda x: x.float(),
    ],
    ids=["times_true", "over_1", "dropout_0", "float"],
)
def test_normalise_one_idle_node_leaves_the_input(function):
    out = check_rewrite(
        gm := raw(Constant(function)), normalise, [tokens()], rewrites=len(gm.graph.nodes) - 2
    )
    assert [node.op for node in out.graph.nodes] == ["placeholder", "output"]


def test_normalise_several_users_all_read_the_source():
    def twice(x):
        y = x.sin() / 1.0
        return y.exp() + y.cos()

    out = check_rewrite(raw(Constant(twice)), normalise, [tokens()], rewrites=1)
    (sine,) = out.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
    assert len(sine.users) == 2


def test_normalise_integer_over_one_is_a_conversion_and_stays():
    gm = capture(Constant(lambda x: x / 1), (torch.arange(3),), {}).gm
    check_rewrite(gm, normalise, [torch.arange(3)], rewrites=0)


def test_normalise_broadcasting_factor_stays():
    gm = raw(Constant(lambda x: x[:1] * torch.ones(2, 1, 1)))
    check_rewrite(gm, normalise, [tokens()], rewrites=0)


def test_normalise_active_dropout_stays():
    gm = raw(Constant(lambda x: F.dropout(x, 0.5, training=True)))
    assert normalise(gm) == 0


@pytest.mark.parametrize("model", [Idle(), Busy()], ids=["idle", "busy"])
def test_normalise_twice_finds_nothing(model):
    check_twice(raw(model), normalise)
