"""outline_regions: equal blocks become calls of one graph."""

import pytest
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import hoist_conditioning, outline_regions, unify_layouts
from dqar_fx.passes.support.blocks import find_blocks
from tests.helpers.rewrite_checks import (
    Attention,
    Bare,
    Stack,
    captured,
    captured_dit,
    check_rewrite,
    check_twice,
    check_values,
    guard_all,
    guarded,
    partial_named,
    printed,
    rewritten,
    tokens,
)


def cut(gm):
    """The pass with the blocks of a graph bound."""
    return partial_named(outline_regions, blocks=find_blocks(gm.graph.nodes))


def calls_of(gm):
    """``(region, block)`` per call."""
    calls = gm.graph.find_nodes(op="call_module", sort=True)
    return [(call.target, call.meta["block"]) for call in calls if "block" in call.meta]


class Bases(Stack):
    """Blocks without parameters."""

    def __init__(self, depth=2):
        nn.Module.__init__(self)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Bare()}) for _ in range(depth))

    def forward(self, x):
        x = x.sin()
        for block in self.blocks:
            x = block["attn"](x)
        return x


def test_outline_regions_smallest_case_printed():
    gm = captured(Bases(), tokens())
    ops = {
        "aten.sin.default": -1,
        "aten.neg.default": -2,
        "aten.scaled_dot_product_attention.default": -2,
        "call_module": 3,
        "<built-in function getitem>": 3,
    }
    out = check_rewrite(gm, cut(gm), [tokens()], rewrites=3, ops=ops)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    run_0 = self.region_0(x)
    getitem: "f32[2, 3, 8]" = run_0[0]
    run_1 = self.region_1(getitem)
    getitem_1: "f32[2, 3, 8]" = run_1[0]
    run_2 = self.region_1(getitem_1)
    getitem_2: "f32[2, 3, 8]" = run_2[0]
    return (getitem_2,)
class region_0(torch.nn.Module):
    def forward(self, x: "f32[2, 3, 8]"):
        sin: "f32[2, 3, 8]" = aten.sin.default(x)
        return (sin,)
class region_1(torch.nn.Module):
    def forward(self, sin: "f32[2, 3, 8]"):
        neg: "f32[2, 3, 8]" = aten.neg.default(sin)
        scaled_dot_product_attention: "f32[2, 3, 8]" =
            aten.scaled_dot_product_attention.default(sin, neg, sin)
        return (scaled_dot_product_attention,)""",
    )


def test_outline_regions_equal_blocks_share_one_graph():
    gm = captured(Stack(4), tokens())
    out = check_rewrite(gm, cut(gm), [tokens()], rewrites=6)
    assert calls_of(out) == [
        ("region_0", ""),
        ("region_1", "blocks.0"),
        ("region_1", "blocks.1"),
        ("region_1", "blocks.2"),
        ("region_1", "blocks.3"),
        ("region_2", ""),
    ]
    assert {name for name, _ in out.named_children() if "region" in name} == {
        "region_0",
        "region_1",
        "region_2",
    }


def test_outline_regions_without_blocks_one_region():
    gm = captured(Stack(3), tokens())
    out = check_rewrite(gm, outline_regions, [tokens()], rewrites=1)
    assert calls_of(out) == [("region_0", "")]


def test_outline_regions_different_blocks_have_graphs_of_their_own():
    model = Stack(3)
    model.blocks[1].norm.eps = 0.5
    gm = captured(model, tokens())
    out = check_rewrite(gm, cut(gm), [tokens()], rewrites=5)
    regions = [region for region, block in calls_of(out) if block]
    assert regions == ["region_1", "region_2", "region_1"]


def test_outline_regions_regions_own_no_parameters():
    gm = captured(Stack(2), tokens())
    out = rewritten(gm, cut(gm))
    for name in ("region_0", "region_1", "region_2"):
        assert not list(out.get_submodule(name).parameters())


def test_outline_regions_flowing_inputs_come_before_parameters():
    gm = captured(Stack(1), tokens())
    out = rewritten(gm, cut(gm))
    call = out.graph.find_nodes(op="call_module", sort=True)[1]
    ops = [source.op for source in call.args]
    assert ops == ["call_function"] + ["get_attr"] * 8


def test_outline_regions_guards_go_into_their_blocks():
    gm = guarded(captured(Stack(3), tokens()))
    out = rewritten(gm, cut(captured(Stack(3), tokens())))
    assert [block for _, block in calls_of(out)] == [
        "",
        *(f"blocks.{i}" for i in range(3)),
        "",
    ]
    assert len({region for region, _ in calls_of(out)}) == 3
    actions_and_slots = [value for k in range(3) for value in (k % 2, tokens())]
    check_values(out(tokens(), *actions_and_slots), gm(tokens(), *actions_and_slots))


def test_outline_regions_dit_layers_share_one_graph_once_conditioning_is_out():
    gm, inputs = captured_dit()
    blocks = find_blocks(gm.graph.nodes)
    unify = partial_named(unify_layouts, blocks=blocks)
    out = rewritten(gm, hoist_conditioning, unify, cut(gm))
    layers = [region for region, block in calls_of(out) if block]
    assert len(layers) == 2
    assert len(set(layers)) == 1
    check_values(out(*inputs), gm(*inputs))


def test_outline_regions_stages_left_alone():
    gm, _ = captured_dit()
    hoisted = rewritten(gm, hoist_conditioning)
    stages = [node.target for node in hoisted.graph.find_nodes(op="call_module")]
    out = rewritten(hoisted, cut(gm))
    calls = out.graph.find_nodes(op="call_module")
    assert [node.target for node in calls if "stage" in node.meta] == stages


def test_outline_regions_several_users_across_regions_read_one_output():
    class Skip(Stack):
        def forward(self, x):
            x = x.sin()
            first = self.blocks[0](x)
            return self.blocks[1](first) + first + x

    gm = captured(Skip(2), tokens())
    check_rewrite(gm, cut(gm), [tokens()], rewrites=4)


def test_outline_regions_block_entered_twice_is_two_calls():
    class Again(Stack):
        def forward(self, x):
            return self.blocks[0](self.blocks[0](x).sin() * 2)

    gm = captured(Again(1), tokens())
    out = check_rewrite(gm, cut(gm), [tokens()], rewrites=3)
    assert [region for region, block in calls_of(out) if block] == ["region_0", "region_0"]


def test_outline_regions_empty_graph_left_alone():
    gm = captured(nn.Identity(), tokens())
    check_rewrite(gm, outline_regions, [tokens()], rewrites=0)


@pytest.mark.parametrize("with_guards", [False, True])
def test_outline_regions_twice_finds_nothing(with_guards):
    gm = captured(Stack(2), tokens())
    each = cut(gm)
    check_twice(rewritten(gm, guard_all) if with_guards else gm, each)


def test_outline_regions_attention_outside_of_lists_is_no_block():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention()

        def forward(self, x):
            return self.attn(x)

    gm = captured(Plain(), tokens())
    check_rewrite(gm, cut(gm), [tokens()], rewrites=1)
