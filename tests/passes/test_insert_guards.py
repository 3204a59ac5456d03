"""insert_guards: every site becomes one guarded node; COMPUTE and STORE keep every bit."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import FORMATS, compute_or_reuse, find_attention, insert_guards
from dqar_fx.schedule.action import Action
from tests.helpers.rewrite_checks import (
    LOSSY,
    Around,
    Attention,
    Bare,
    Joined,
    Stack,
    allocated_slots,
    captured,
    captured_dit,
    check_rewrite,
    check_twice,
    check_values,
    fused,
    guard_all,
    guarded,
    partial_named,
    printed,
    tokens,
)

COMPUTED = {"aten.linear.default": -4, "aten.scaled_dot_product_attention.default": -1}
GUARD = str(compute_or_reuse)
WORDS = tokens(2, 5, 8)


def guards_of(gm):
    return gm.graph.find_nodes(op="call_function", target=compute_or_reuse)


def flat(gm, actions):
    """Arguments for the actions and slots of a guarded graph, in its order."""
    actions, slots = iter(actions), iter(allocated_slots(gm))
    inputs = gm.graph.find_nodes(op="placeholder")
    return [
        next(actions) if "action" in node.meta else next(slots)
        for node in inputs
        if "action" in node.meta or "slot" in node.meta
    ]


def test_insert_guards_smallest_site_rewritten():
    gm = captured(Around(Bare()), tokens())
    out = check_rewrite(
        gm,
        guard_all,
        [tokens()],
        rewrites=1,
        ops={
            "aten.neg.default": -1,
            "aten.scaled_dot_product_attention.default": -1,
            GUARD: 1,
            "<built-in function getitem>": 1,
        },
        more_inputs=[Action.COMPUTE, tokens()],
    )
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", action_0, slot_0_0_0: "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    body_0 = self.body_0
    compute_or_reuse = dqar_fx_passes_support_guards_compute_or_reuse(action_0, None,
        [[[slot_0_0_0]]], body_0, None, 'same', [torch.float32], [sin], [])
    getitem: "f32[2, 3, 8]" = compute_or_reuse[0]
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, getitem)
    return (add,)
class body_0(torch.nn.Module):
    def forward(self, sin: "f32[2, 3, 8]"):
        neg: "f32[2, 3, 8]" = aten.neg.default(sin)
        scaled_dot_product_attention: "f32[2, 3, 8]" =
            aten.scaled_dot_product_attention.default(sin, neg, sin)
        return (scaled_dot_product_attention,)""",
    )


@pytest.mark.parametrize("action", [Action.COMPUTE, Action.STORE])
def test_insert_guards_dit_computing_equals_the_original(action):
    gm, inputs = captured_dit()
    more = flat(guarded(gm), [action] * 2)
    check_rewrite(gm, guard_all, inputs, rewrites=2, more_inputs=more)


def test_insert_guards_store_keeps_the_output_and_reuse_gives_it():
    gm = guarded(captured(Around(Attention()), tokens()))
    (slot,) = allocated_slots(gm)
    (stored,) = gm(tokens(), Action.STORE, slot)
    assert torch.equal(tokens() + slot, stored)
    (reused,) = gm(torch.zeros_like(tokens()), Action.REUSE, slot)
    assert torch.equal(reused, slot)


def test_insert_guards_compute_leaves_the_slot_alone():
    gm = guarded(captured(Around(Attention()), tokens()))
    (slot,) = allocated_slots(gm)
    gm(tokens(), Action.COMPUTE, slot)
    assert (slot == 99.0).all()


def test_insert_guards_joint_has_a_slot_per_output():
    gm = guarded(captured(Joined(), tokens(), WORDS))
    image, words = slots = allocated_slots(gm)
    results = gm(tokens(), WORDS, Action.STORE, *slots)
    assert torch.equal(results[0], tokens() + image)
    assert torch.equal(results[1], WORDS + words)


@pytest.mark.parametrize("cache", LOSSY)
def test_insert_guards_format_sets_the_slots(cache):
    gm = guarded(captured(Around(Attention()), tokens()), cache)
    slots = allocated_slots(gm)
    assert slots[0].dtype == FORMATS[cache].dtype
    gm(tokens(), Action.STORE, *slots)
    assert not slots[-1]
    (reused,) = gm(torch.zeros_like(tokens()), Action.REUSE, *slots)
    assert reused.dtype == torch.float32
    assert torch.equal(reused, FORMATS[cache].read(slots, torch.float32))


@pytest.mark.parametrize("cache", LOSSY)
def test_insert_guards_store_of_nan_sets_the_flag(cache):
    gm = guarded(captured(Around(Attention()), tokens()), cache)
    slots = allocated_slots(gm)
    gm(torch.full_like(tokens(), torch.nan), Action.COMPUTE, *slots)
    assert not slots[-1]
    gm(torch.full_like(tokens(), torch.nan), Action.STORE, *slots)
    assert slots[-1]


def test_insert_guards_format_with_scales_numbers_every_buffer():
    gm = guarded(captured(Joined(), tokens(), WORDS), "int8")
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    assert names[2:] == ["action_0", *(f"slot_0_{j}_{b}" for j in range(2) for b in range(3))]
    slots = allocated_slots(gm)
    assert [tuple(slot.shape) for slot in slots[:3]] == [(2, 3, 8), (2, 3, 1), ()]
    gm(tokens(), WORDS, Action.STORE, *slots)
    image, words = gm(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8), Action.REUSE, *slots)
    assert torch.equal(image, FORMATS["int8"].read(slots[:3], torch.float32))
    assert torch.equal(words, FORMATS["int8"].read(slots[3:], torch.float32))


def test_insert_guards_columns_and_slots_are_named_in_meta():
    gm = guarded(captured(Joined(), tokens(), WORDS))
    inputs = gm.graph.find_nodes(op="placeholder")
    assert [node.name for node in inputs[2:]] == ["action_0", "slot_0_0_0", "slot_0_1_0"]
    assert [n.meta["action"] for n in inputs if "action" in n.meta] == [0]
    slots = [n.meta["slot"] for n in inputs if "slot" in n.meta]
    assert slots == [(0, 0, 0, 0), (0, 1, 0, 0)]
    (guard,) = guards_of(gm)
    assert guard.meta["site"].path == "attn"


def test_insert_guards_several_users_all_read_the_guard():
    class Read(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention()

        def forward(self, x):
            y = self.attn(x)
            return y.sin() + y.cos(), y

    gm = captured(Read(), tokens())
    more = [Action.COMPUTE, tokens()]
    out = check_rewrite(gm, guard_all, [tokens()], rewrites=1, more_inputs=more)
    (item,) = guards_of(out)[0].users
    assert len(item.users) == 3


def test_insert_guards_site_not_chosen_left_alone():
    def guard_second(gm):
        return insert_guards(gm, find_attention(gm)[0][1:2], FORMATS["same"])

    gm = captured(Stack(3), tokens())
    more = [Action.COMPUTE, tokens()]
    out = check_rewrite(gm, guard_second, [tokens()], rewrites=1, more_inputs=more)
    left = [match.site.path for match in find_attention(out)[0]]
    assert left == ["blocks.0.attn", "blocks.2.attn"]


def test_insert_guards_body_owns_no_parameters():
    gm = guarded(captured(Around(Attention()), tokens()))
    assert not list(gm.get_submodule("body_0").parameters())
    (guard,) = guards_of(gm)
    *_, inputs, others = guard.args
    assert others == []
    names = [node.name for node in inputs]
    assert names[1:] == [f"attn_to_{name}_weight" for name in ("q", "k", "v", "out")]


def test_insert_guards_no_match_leaves_alone():
    gm = captured(torch.nn.Linear(8, 8), tokens())
    check_rewrite(gm, guard_all, [tokens()], rewrites=0, ops={})


def test_insert_guards_twice_finds_nothing():
    check_twice(captured(Stack(2), tokens()), partial_named(guard_all, cache="fp16"))


def test_insert_guards_unknown_format_rejected_by_the_guard():
    with pytest.raises(KeyError):
        compute_or_reuse(Action.REUSE, None, [], tuple, None, "fp3", [], [], [])


def test_insert_guards_expanded_output_can_be_stored():
    class Expanded(nn.Module):
        def forward(self, x):
            return fused(x, x.neg(), x)[:1].expand(2, -1, -1)

    gm = captured(Around(Expanded()), tokens())
    out = guarded(gm)
    spec = find_attention(gm)[0][0].site.kept[0]
    check_values(out(tokens(), Action.STORE, spec.allocate()), gm(tokens()))
