"""keep_keys_values: the guard keeps what the attention reads, and asks it afresh."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import FORMATS, NoMatch, compute_or_reuse, find_attention, keep_keys_values
from dqar_fx.schedule.action import Action
from tests.helpers.keys_values_guards import (
    COMPUTE,
    LATER,
    REUSE,
    SDPA,
    WORDS,
    Own,
    keep_all,
    kept,
    match_of,
    specialised,
    trajectory,
)
from tests.helpers.rewrite_checks import (
    HEADS,
    LOSSY,
    TOKENS,
    WIDTH,
    Around,
    Attention,
    Stack,
    allocated_slots,
    captured,
    check_metadata,
    check_rewrite,
    check_twice,
    check_values,
    fused,
    merge_heads,
    partial_named,
    printed,
    projections,
    split_heads,
    tokens,
)

# ---- networks ----------------------------------------------------------------------------


class Calls(nn.Module):
    """Attention on what a function makes of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class PassesOn(nn.Module):
    """Attention, and its values for others to read."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = projections()

    def forward(self, x):
        v = self.to_v(x)
        return self.to_out(fused(self.to_q(x), self.to_k(x), v)), v


class ReadsBoth(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = PassesOn()

    def forward(self, x):
        y, v = self.attn(x)
        return y.sin() + v.cos()


# ---- the rewrite -------------------------------------------------------------------------


def test_keep_keys_values_smallest_site_rewritten():
    gm = captured(Around(Own()), tokens())
    out = check_rewrite(
        gm,
        keep_all,
        [tokens()],
        rewrites=1,
        ops={
            "aten.neg.default": -1,
            "aten.cos.default": -1,
            SDPA: -1,
            str(compute_or_reuse): 1,
            "<built-in function getitem>": 1,
        },
        more_inputs=[COMPUTE, tokens(), tokens()],
    )
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", action_0, slot_0_0_0: "f32[2, 3, 8]", slot_0_1_0:
    "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    body_0 = self.body_0
    resume_0 = self.resume_0
    compute_or_reuse = dqar_fx_passes_support_guards_compute_or_reuse(action_0, None,
        [[[slot_0_0_0]], [[slot_0_1_0]]], body_0, resume_0, 'same', [torch.float32,
        torch.float32], [sin], [sin])
    getitem: "f32[2, 3, 8]" = compute_or_reuse[0]
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, getitem)
    return (add,)
class body_0(torch.nn.Module):
    def forward(self, sin: "f32[2, 3, 8]"):
        neg: "f32[2, 3, 8]" = aten.neg.default(sin)
        cos: "f32[2, 3, 8]" = aten.cos.default(sin)
        scaled_dot_product_attention: "f32[2, 3, 8]" =
            aten.scaled_dot_product_attention.default(sin, neg, cos)
        return (scaled_dot_product_attention, neg, cos)
class resume_0(torch.nn.Module):
    def forward(self, neg: "f32[2, 3, 8]", cos: "f32[2, 3, 8]", sin: "f32[2, 3, 8]"):
        scaled_dot_product_attention: "f32[2, 3, 8]" =
            aten.scaled_dot_product_attention.default(sin, neg, cos)
        return (scaled_dot_product_attention,)""",
    )


def test_keep_keys_values_smallest_site_reused():
    out = specialised(kept(captured(Around(Own()), tokens())), REUSE)
    out.delete_submodule("body_0")
    out.delete_submodule("resume_0")
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", slot_0_0_0: "f32[2, 3, 8]", slot_0_1_0: "f32[2,
    3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    scaled_dot_product_attention: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(sin, slot_0_0_0, slot_0_1_0)
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, scaled_dot_product_attention)
    return (add,)""",
    )


def test_keep_keys_values_describes_what_is_kept_and_leaves_the_graph_alone():
    gm = captured(Around(Attention()), tokens())
    before = printed(gm)
    (match,), _ = find_attention(gm)
    found = keep_keys_values(match)
    assert printed(gm) == before
    (operator,) = match.operators
    assert found.kept == (operator.key, operator.value)
    shape, stride = (2, HEADS, TOKENS, 4), (TOKENS * WIDTH, 4, WIDTH, 1)
    assert [(s.shape, s.stride) for s in found.site.kept] == [(shape, stride)] * 2
    assert (found.outputs, found.body, found.inputs) == (
        match.outputs,
        match.body,
        match.inputs,
    )
    assert found.site.path == "attn"
    assert str(found.site).endswith("keeps [2, 2, 3, 4], [2, 2, 3, 4]")


def test_keep_keys_values_one_tensor_for_both_is_kept_once():
    model = Around(Calls(lambda x: attend_to(x, x.cos())))
    gm = captured(model, tokens())
    (match,), _ = find_attention(gm)
    assert [node.name for node in keep_keys_values(match).kept] == ["cos"]
    first = tokens().sin()
    _, (result,), slots = trajectory(gm, [tokens()], [LATER])
    check_values(slots, [first.cos()])
    check_values([result], [LATER + attend_to(LATER.sin(), first.cos())])


def attend_to(x, source):
    return fused(x, source, source)


def test_keep_keys_values_values_alone_where_keys_are_given():
    model = Around(Calls(lambda x, keys: fused(x, keys, x.cos())))
    gm = captured(model, tokens(), tokens())
    (match,), _ = find_attention(gm)
    assert [node.name for node in keep_keys_values(match).kept] == ["cos"]
    keys, first = LATER.neg(), tokens().sin()
    _, (result,), _ = trajectory(gm, [tokens(), tokens()], [LATER, keys])
    check_values([result], [LATER + fused(LATER.sin(), keys, first.cos())])


def test_keep_keys_values_given_from_outside_is_no_match():
    model = Around(Calls(lambda x, k, v: fused(x.neg(), k, v).sin()))
    match = match_of(model, tokens(), WORDS, WORDS)
    with pytest.raises(NoMatch) as raised:
        keep_keys_values(match)
    assert raised.value.reason == (
        "keys and values of attn are not computed by it, so that keeping them saves nothing"
    )
    assert raised.value.node is match.operators[0].result
    assert str(raised.value).endswith("(at %scaled_dot_product_attention)")


def test_keep_keys_values_that_others_read_stay_computed():
    """Values that the module passes on are none of the site's to keep."""
    torch.manual_seed(0)
    model = ReadsBoth().requires_grad_(False)
    gm = captured(model, tokens())
    (match,), _ = find_attention(gm)
    assert keep_keys_values(match).kept == (match.operators[0].key,)
    _, (result,), _ = trajectory(gm, [tokens()], [LATER])
    attn = model.attn
    y = attn.to_out(fused(attn.to_q(LATER), attn.to_k(tokens()), attn.to_v(LATER)))
    check_values([result], [y.sin() + attn.to_v(LATER).cos()])


def test_keep_keys_values_twice_finds_nothing():
    check_twice(captured(Stack(2), tokens()), partial_named(keep_all, cache="int8"))


def test_keep_keys_values_no_site_left_alone():
    check_rewrite(
        captured(nn.Linear(WIDTH, WIDTH), tokens()), keep_all, [tokens()], rewrites=0
    )


def test_keep_keys_values_parts_own_no_parameters():
    gm = kept(captured(Around(Attention()), tokens()))
    for name in ("body_0", "resume_0"):
        assert not list(gm.get_submodule(name).parameters())
    (guard,) = (node for node in gm.graph.nodes if "site" in node.meta)
    *_, inputs, others = guard.args
    weights = [f"attn_to_{name}_weight" for name in ("q", "k", "v", "out")]
    assert [node.name for node in inputs] == ["sin", *weights]
    assert [node.name for node in others] == ["sin", weights[0], weights[3]]


# ---- formats -----------------------------------------------------------------------------


@pytest.mark.parametrize("cache", LOSSY)
def test_keep_keys_values_format_is_what_reuse_reads_through(cache):
    torch.manual_seed(0)
    model = Around(Attention()).requires_grad_(False)
    gm, kept_as = captured(model, tokens()), FORMATS[cache]
    stored, reused, slots = trajectory(gm, [tokens()], [LATER], cache)
    check_values(stored, gm(tokens()))
    attn, x = model.attn, tokens().sin()
    q, k, v = map(split_heads, (attn.to_q(LATER.sin()), attn.to_k(x), attn.to_v(x)))
    middle = len(slots) // 2
    read = []
    for value, buffers in ((k, slots[:middle]), (v, slots[middle:])):
        again = [torch.zeros_like(buffer) for buffer in buffers]
        kept_as.write(value, again)
        for a, b in zip(buffers, again, strict=True):
            assert torch.equal(a.float(), b.float())
        read.append(kept_as.read(again, torch.float32))
    check_values(reused, [LATER + attn.to_out(merge_heads(fused(q, *read)))])


@pytest.mark.parametrize("cache", FORMATS)
@pytest.mark.parametrize("action", Action)
def test_keep_keys_values_metadata_stays_true(action, cache):
    out = specialised(kept(captured(Stack(1), tokens()), cache), action)
    check_metadata(out, [tokens(), *allocated_slots(out)])
