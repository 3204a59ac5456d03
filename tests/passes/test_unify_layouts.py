"""unify_layouts: a strided input of one block is made contiguous, if its siblings' are not."""

import pytest
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import hoist_conditioning, outline_regions, unify_layouts
from dqar_fx.passes.support.blocks import find_blocks
from dqar_fx.passes.support.graphs import is_call_output
from tests.helpers.rewrite_checks import (
    Bare,
    Stack,
    aten,
    captured,
    captured_dit,
    check_metadata,
    check_rewrite,
    check_twice,
    partial_named,
    printed,
    rewritten,
    tokens,
)

CLOSE = 1e-6
"""Another layout may take another kernel."""
LATENT = tokens(2, 8, 3)
COPIED = {"aten.contiguous.default": 1}


class Channels(Stack):
    """A latent with channels first: the first block reads it through a transposition."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2))


class Small(nn.Module):
    """Blocks without parameters, of which the first reads a strided tensor."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Bare()}) for _ in range(2))

    def forward(self, x):
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = block["attn"](x)
        return x


class OneSource(Stack):
    """All blocks read the same strided tensor."""

    def forward(self, x):
        x = x.sin().transpose(1, 2)
        first, second = (block(x) for block in self.blocks)
        return first + second


class Branches(Stack):
    """Two readers of a strided tensor beside one of another."""

    def forward(self, x):
        x = x.sin().transpose(1, 2)
        first, second, third = self.blocks
        return third(first(x) + second(x))


def unify(gm):
    """The pass with the blocks of a graph bound."""
    return partial_named(unify_layouts, blocks=find_blocks(gm.graph.nodes))


def num_structures(gm):
    """How many regions a graph's blocks need."""
    out = rewritten(gm, partial_named(outline_regions, blocks=find_blocks(gm.graph.nodes)))
    calls = out.graph.find_nodes(op="call_module")
    return len({call.target for call in calls if call.meta.get("block")})


def test_unify_layouts_smallest_case_printed():
    gm = captured(Small(), LATENT)
    out = check_rewrite(gm, unify(gm), [LATENT], rewrites=1, ops=COPIED, relative=CLOSE)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 8, 3]"):
    transpose: "f32[2, 3, 8]" = aten.transpose.int(x, 1, 2)
    contiguous_default: "f32[2, 3, 8]" = aten.contiguous.default(transpose)
    neg: "f32[2, 3, 8]" = aten.neg.default(contiguous_default)
    scaled_dot_product_attention: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(contiguous_default, neg,
        contiguous_default)
    neg_1: "f32[2, 3, 8]" = aten.neg.default(scaled_dot_product_attention)
    scaled_dot_product_attention_1: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(scaled_dot_product_attention, neg_1,
        scaled_dot_product_attention)
    return (scaled_dot_product_attention_1,)""",
    )


def test_unify_layouts_first_block_becomes_equal_to_the_others():
    gm = captured(Channels(3), LATENT)
    assert num_structures(gm) == 2
    out = check_rewrite(gm, unify(gm), [LATENT], rewrites=1, ops=COPIED, relative=CLOSE)
    assert num_structures(out) == 1


def test_unify_layouts_metadata_computed_anew():
    gm = captured(Channels(3), LATENT)
    check_metadata(rewritten(gm, unify(gm)), [LATENT])


def test_unify_layouts_several_users_in_the_block_all_read_the_copy():
    gm = captured(Channels(2), LATENT)
    out = rewritten(gm, unify(gm))
    (copied,) = out.graph.find_nodes(op="call_function", target=aten.contiguous.default)
    assert len(copied.users) == 2
    assert len(copied.args[0].users) == 1


def test_unify_layouts_each_block_reads_a_copy_of_its_own():
    gm = captured(Branches(3), LATENT)
    out = check_rewrite(gm, unify(gm), [LATENT], rewrites=2, relative=CLOSE)
    assert num_structures(out) == 1


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Stack(3), tokens()),
        (OneSource(2), LATENT),
        (Channels(1), LATENT),
    ],
    ids=["contiguous", "equally_strided", "lone_block"],
)
def test_unify_layouts_equal_strides_left_alone(model, x):
    gm = captured(model, x)
    check_rewrite(gm, unify(gm), [x], rewrites=0, ops={})


def test_unify_layouts_strided_parameters_left_alone():
    model = Stack(2)
    weight = model.blocks[0].last.weight
    weight.data = weight.data.T.contiguous().T
    gm = captured(model, tokens())
    check_rewrite(gm, unify(gm), [tokens()], rewrites=0, ops={})


def test_unify_layouts_without_blocks_left_alone():
    gm = captured(Channels(3), LATENT)
    none = partial_named(unify_layouts, blocks=())
    check_rewrite(gm, none, [LATENT], rewrites=0, ops={})


def test_unify_layouts_dit_after_hoisting_has_one_structure():
    gm, inputs = captured_dit()
    hoisted = rewritten(gm, hoist_conditioning)
    assert num_structures(hoisted) == 2
    out = check_rewrite(
        hoisted, unify(hoisted), inputs, rewrites=1, ops=COPIED, relative=CLOSE
    )
    assert num_structures(out) == 1
    check_metadata(out, inputs, is_settled=True)


def test_unify_layouts_says_that_what_stages_give_is_contiguous():
    gm, _ = captured_dit()
    hoisted = rewritten(gm, hoist_conditioning)
    given = [n.meta["val"] for n in hoisted.graph.nodes if is_call_output(n)]
    out = rewritten(hoisted, unify(hoisted))
    settled = [n.meta["val"] for n in out.graph.nodes if is_call_output(n)]
    assert not all(value.is_contiguous() for value in given)
    assert all(value.is_contiguous() for value in settled)
    assert [value.shape for value in settled] == [value.shape for value in given]


@pytest.mark.parametrize("model", [Channels(3), Branches(3)], ids=["channels", "branches"])
def test_unify_layouts_twice_finds_nothing(model):
    gm = captured(model, LATENT)
    check_twice(gm, unify(gm))
