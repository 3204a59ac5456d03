"""specialise: the branch an action takes is all that is left of a guard."""

from itertools import product

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import FORMATS, compute_or_reuse, specialise
from dqar_fx.schedule.action import Action
from tests.helpers.rewrite_checks import (
    LOSSY,
    Around,
    Attention,
    Bare,
    Joined,
    Stack,
    allocated_slots,
    aten,
    captured,
    captured_dit,
    check_metadata,
    check_twice,
    check_values,
    fused,
    guarded,
    operators,
    partial_named,
    printed,
    rewritten,
    tokens,
)

COMPUTE, STORE, REUSE = Action.COMPUTE, Action.STORE, Action.REUSE
LINEAR, SDPA = "aten.linear.default", "aten.scaled_dot_product_attention.default"


def specialised(gm, *actions):
    return rewritten(gm, partial_named(specialise, actions=actions))


def input_names(gm):
    return [node.name for node in gm.graph.find_nodes(op="placeholder")]


def slot_names(gm):
    return [node.name for node in gm.graph.find_nodes(op="placeholder") if "slot" in node.meta]


class Shown(nn.Module):
    """Its output is the attention's, or a view of it."""

    def __init__(self, view):
        super().__init__()
        self.attn = Attention()
        self.view = view

    def forward(self, x):
        return self.view(self.attn(x))


def test_specialise_compute_is_the_original_without_slots():
    gm = captured(Around(Bare()), tokens())
    out = specialised(guarded(gm), COMPUTE)
    assert printed(out).startswith(printed(gm))
    assert input_names(out) == ["x"]
    check_values(out(tokens()), gm(tokens()))


def test_specialise_store_writes_the_slot():
    gm = guarded(captured(Around(Bare()), tokens()))
    out = specialised(gm, STORE)
    (slot,) = allocated_slots(out)
    (result,) = out(tokens(), slot)
    assert torch.equal(slot, fused(tokens().sin(), -tokens().sin(), tokens().sin()))
    assert torch.equal(result, tokens() + slot)
    out.delete_submodule("body_0")
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", slot_0_0_0: "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    neg: "f32[2, 3, 8]" = aten.neg.default(sin)
    scaled_dot_product_attention: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
    copy_: "f32[2, 3, 8]" = aten.copy_.default(slot_0_0_0,
        scaled_dot_product_attention)
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, scaled_dot_product_attention)
    return (add,)""",
    )


def test_specialise_reuse_reads_the_slot_and_nothing_else():
    gm = guarded(captured(Around(Bare()), tokens()))
    out = specialised(gm, REUSE)
    assert operators(out) == {"aten.add.Tensor": 1}
    out.delete_submodule("body_0")
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", slot_0_0_0: "f32[2, 3, 8]"):
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, slot_0_0_0)
    return (add,)""",
    )


def test_specialise_reuse_drops_projections_and_the_norm_before_them():
    gm = captured(Stack(1), tokens())
    full = operators(gm)
    left = operators(specialised(guarded(gm), REUSE))
    assert (full[LINEAR], full[SDPA], full["aten.layer_norm.default"]) == (5, 1, 1)
    assert (left[LINEAR], left[SDPA], left["aten.layer_norm.default"]) == (1, 0, 0)


def test_specialise_reuse_keeps_a_norm_with_another_reader():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.attn = nn.LayerNorm(8), Attention()

        def forward(self, x):
            normed = self.norm(x)
            return self.attn(normed) + normed

    left = operators(specialised(guarded(captured(Shared(), tokens())), REUSE))
    assert left == {"aten.layer_norm.default": 1, "aten.add.Tensor": 1}


def test_specialise_dit_reuse_drops_both_attentions():
    gm, _ = captured_dit()
    left = operators(specialised(guarded(gm), REUSE, REUSE))
    assert left[SDPA] == 0
    assert operators(gm)[LINEAR] - left[LINEAR] == 2 * 4


@pytest.mark.parametrize("actions", list(product(Action, repeat=2)))
def test_specialise_dit_row_equals_the_guarded_graph(actions):
    gm, inputs = captured_dit()
    guards = guarded(gm)
    out = specialised(guards, *actions)
    kept = [torch.full_like(slot, 0.5) for slot in allocated_slots(guards)]
    found = [slot.clone() for slot in kept]
    more = [pair for k in range(2) for pair in (actions[k], kept[k])]
    by_name = dict(zip(input_names(guards), [*inputs, *more], strict=True))
    by_name.update(slot_0_0_0=found[0], slot_1_0_0=found[1])
    expected = guards(*inputs, *more)
    check_values(out(*(by_name[name] for name in input_names(out))), expected)
    check_values(found, kept)


def test_specialise_joint_reuse_reads_both_slots():
    words = tokens(2, 5, 8)
    out = specialised(guarded(captured(Joined(), tokens(), words)), REUSE)
    results = out(tokens(), words, torch.ones(2, 3, 8), torch.ones(2, 5, 8))
    check_values(results, (tokens() + 1, words + 1))


@pytest.mark.parametrize(
    "view",
    [
        lambda y: y,
        lambda y: y.transpose(0, 1),
        lambda y: y.reshape(6, 8),
        lambda y: y[:, 1:],
        lambda y: y.unflatten(-1, (2, 4)).flatten(0, 1),
    ],
    ids=["itself", "transpose", "reshape", "slice", "views_of_views"],
)
def test_specialise_slot_as_output_is_copied(view):
    out = specialised(guarded(captured(Shown(view), tokens())), REUSE)
    (slot,) = allocated_slots(out)
    (result,) = out(slot)
    assert torch.equal(result, view(slot))
    slot.zero_()
    assert (result == 99.0).all()


def test_specialise_slot_that_is_two_outputs_is_copied_once_for_both():
    out = specialised(guarded(captured(Shown(lambda y: (y, y)), tokens())), REUSE)
    assert operators(out) == {"aten.clone.default": 1}


def test_specialise_stored_output_does_not_share_the_slot():
    out = specialised(guarded(captured(Shown(lambda y: y), tokens())), STORE)
    (slot,) = allocated_slots(out)
    (result,) = out(tokens(), slot)
    expected = slot.clone()
    slot.zero_()
    assert torch.equal(result, expected)


def casts_of(gm):
    """The dtypes that a graph casts to."""
    casts = [n for n in gm.graph.nodes if n.target is aten._to_copy.default]
    return [node.meta["val"].dtype for node in casts]


@pytest.mark.parametrize("cache", ["fp16", "bf16"])
@pytest.mark.parametrize("action", [STORE, REUSE])
def test_specialise_narrow_format_inserts_one_cast(cache, action):
    out = specialised(guarded(captured(Around(Bare()), tokens()), cache), action)
    assert casts_of(out) == [FORMATS[cache].dtype if action == STORE else torch.float32]


@pytest.mark.parametrize("cache", ["fp16", "bf16"])
def test_specialise_narrow_format_rounds_what_is_kept_and_nothing_else(cache):
    gm = captured(Shown(lambda y: y), tokens())
    out = specialised(guarded(gm, cache), STORE)
    slot, flag = allocated_slots(out)
    (exact,) = gm(tokens())
    check_values(out(tokens(), slot, flag), [exact])
    assert torch.equal(slot, exact.to(FORMATS[cache].dtype))
    assert not flag


@pytest.mark.parametrize("cache", LOSSY)
def test_specialise_store_and_reuse_do_what_the_format_says(cache):
    gm, kept_as = captured(Shown(lambda y: y), tokens()), FORMATS[cache]
    guards = guarded(gm, cache)
    store, reuse = specialised(guards, STORE), specialised(guards, REUSE)
    slots, expected = allocated_slots(store), allocated_slots(store)
    (exact,) = gm(tokens())
    check_values(store(tokens(), *slots), [exact])
    kept_as.write(exact, expected)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(slots, expected, strict=True))
    by_name = dict(zip(slot_names(guards), slots, strict=True))
    result = reuse(*(by_name[name] for name in input_names(reuse)))
    check_values(result, [kept_as.read(expected, torch.float32)])


@pytest.mark.parametrize("cache", LOSSY)
def test_specialise_flag_is_written_by_store_alone(cache):
    guards = guarded(captured(Around(Bare()), tokens()), cache)
    (*_, flag) = slot_names(guards)
    compute, out, reuse = (specialised(guards, action) for action in (COMPUTE, STORE, REUSE))
    assert flag in input_names(out)
    assert flag not in input_names(compute) + input_names(reuse)
    slots = allocated_slots(out)
    out(tokens(), *slots)
    assert not slots[-1]
    out(tokens() * torch.inf, *slots)
    assert slots[-1]
    out(tokens(), *slots)
    assert slots[-1]


@pytest.mark.parametrize("cache", FORMATS)
@pytest.mark.parametrize("action", Action)
def test_specialise_metadata_stays_true(action, cache):
    gm = guarded(captured(Stack(1), tokens()), cache)
    out = specialised(gm, action)
    check_metadata(out, [tokens(), *allocated_slots(out)])


def test_specialise_several_users_of_a_guard_all_resolved():
    gm = guarded(captured(Shown(lambda y: y.sin() + y.cos()), tokens()))
    out = specialised(gm, REUSE)
    assert operators(out) == dict.fromkeys(
        ["aten.sin.default", "aten.cos.default", "aten.add.Tensor"], 1
    )


def test_specialise_no_guards_left_alone():
    gm = captured(Stack(1), tokens())
    assert printed(specialised(gm)) == printed(gm)


def test_specialise_twice_finds_nothing():
    out = specialised(guarded(captured(Stack(2), tokens())), STORE, REUSE)
    assert not out.graph.find_nodes(op="call_function", target=compute_or_reuse)
    check_twice(out, partial_named(specialise, actions=()))


@pytest.mark.parametrize("actions", [(), (STORE,), (STORE,) * 3])
def test_specialise_wrong_number_of_actions_rejected(actions):
    gm = guarded(captured(Stack(2), tokens()))
    message = f"the graph has 2 guards but {len(actions)} actions came"
    with pytest.raises(ValueError, match=message):
        specialise(gm, actions)


class Chunked(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()

    def forward(self, x):
        return self.attn(x).chunk(2, -1)


def test_specialise_slot_as_output_through_a_split_is_copied():
    out = guarded(captured(Chunked(), tokens()))
    specialise(out, [Action.REUSE])
    out.recompile()
    (slot,) = allocated_slots(out)
    result, _ = out(slot)
    slot.zero_()
    assert (result == 99.0).all()
