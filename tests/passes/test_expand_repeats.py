"""expand_repeats puts a traced block's nodes where a mark stands in for an equal one."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch import fx, nn

from dqar_fx.capture.capture import flatten_export, fork_model
from dqar_fx.capture.repeats import RepeatedBlocks
from dqar_fx.inspect import graph_diff
from dqar_fx.passes import CannotExpand, expand_repeats
from dqar_fx.passes.support.marks import MARK
from dqar_fx.passes.support.module_paths import module_path, module_stack
from dqar_fx.passes.support.runner import fork, run_pass
from tests.helpers.rewrite_checks import printed, tokens


class Row(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Towers(nn.Module):
    """Lists inside of a list."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ModuleList(Row(2) for _ in range(2))

    def forward(self, x):
        for row in self.rows:
            x = row(x).relu()
        return x


def marked(model: nn.Module) -> fx.GraphModule:
    """The graph of one call with marks."""
    own = fork_model(model)
    assert RepeatedBlocks.watch(own)
    return flatten_export(torch.export.export(own, (tokens(),), strict=False))


def test_expand_repeats_copies_the_first_block_with_the_parameters_of_each():
    model = Row(2)
    gm = marked(model)
    assert_expected_inline(
        printed(gm),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    blocks_0_weight: "f32[8, 8]" = getattr(self.blocks, "0").weight
    blocks_0_bias: "f32[8]" = getattr(self.blocks, "0").bias
    blocks_1_weight: "f32[8, 8]" = getattr(self.blocks, "1").weight
    blocks_1_bias: "f32[8]" = getattr(self.blocks, "1").bias
    mark = torch.ops.dqar_fx.mark.default([x], [x], 'begin', 1, 'blocks.0')
    getitem: "f32[2, 3, 8]" = mark[0]
    linear: "f32[2, 3, 8]" = aten.linear.default(getitem, blocks_0_weight,
        blocks_0_bias)
    mark_1 = torch.ops.dqar_fx.mark.default([linear], [linear], 'end', 1, 'blocks.0')
    getitem_1: "f32[2, 3, 8]" = mark_1[0]
    mark_2 = torch.ops.dqar_fx.mark.default([getitem_1], [getitem_1], 'again', 1,
        'blocks.1')
    getitem_2: "f32[2, 3, 8]" = mark_2[0]
    return (getitem_2,)""",
    )
    out = fork(gm)
    assert run_pass(out, expand_repeats).rewrites == 3  # marks
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    blocks_0_weight: "f32[8, 8]" = getattr(self.blocks, "0").weight
    blocks_0_bias: "f32[8]" = getattr(self.blocks, "0").bias
    blocks_1_weight: "f32[8, 8]" = getattr(self.blocks, "1").weight
    blocks_1_bias: "f32[8]" = getattr(self.blocks, "1").bias
    linear: "f32[2, 3, 8]" = aten.linear.default(x, blocks_0_weight, blocks_0_bias)
    linear_1: "f32[2, 3, 8]" = aten.linear.default(linear, blocks_1_weight,
        blocks_1_bias)
    return (linear_1,)""",
    )
    assert torch.equal(out(tokens())[0], model(tokens()))


def test_expand_repeats_goes_into_lists_of_lists():
    model = Towers()
    out = fork(marked(model))
    assert run_pass(out, expand_repeats).rewrites == 6  # a row, and one inside of the first
    assert torch.equal(out(tokens())[0], model(tokens()))
    linears = out.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    paths = [f"rows.{i}.blocks.{j}" for i in range(2) for j in range(2)]
    assert [module_path(node) for node in linears] == paths
    assert [module_stack(node)[1] for node in linears] == [
        (f"L__self__rows.{i}", f"rows.{i}") for i in range(2) for _ in range(2)
    ]
    assert [node.args[1].target for node in linears] == [f"{path}.weight" for path in paths]


def test_expand_repeats_leaves_a_graph_without_marks_alone():
    gm = fork(marked(Row(3)))
    assert run_pass(gm, expand_repeats).rewrites == 4
    again = fork(gm)
    assert run_pass(again, expand_repeats).rewrites == 0
    assert not graph_diff(gm, again)


def read_past_the_mark(gm, linear):
    linear.update_arg(0, gm.graph.find_nodes(op="placeholder")[0])


def read_past_the_result(gm, linear):
    gm.graph.output_node().args = ((linear,),)


def call_apart(gm, linear):
    linear.meta["nn_module_stack"] = {"L__self__blocks.1": ("blocks.1", "Linear")}


def lose_the_end(gm, linear):
    _, end, _ = gm.graph.find_nodes(op="call_function", target=MARK)
    for item in list(end.users):
        item.replace_all_uses_with(linear)
        gm.graph.erase_node(item)
    gm.graph.erase_node(end)


def have_a_graph(gm, linear):
    gm.add_submodule("inner", fork(gm))
    for node in gm.inner.graph.find_nodes(op="call_function", target=MARK):
        node.target = torch.ops.aten.relu.default
    with gm.graph.inserting_before(linear):
        gm.graph.get_attr("inner")


def be_in_a_graph(gm, linear):
    gm.add_submodule("inner", fork(gm))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (read_past_the_mark, "%x is read in a block and no input of it"),
        (read_past_the_result, "%linear of blocks.0 is read past its result"),
        (call_apart, "blocks.1 is called apart from its block"),
        (lose_the_end, "a mark of call 1 is missing"),
        (have_a_graph, "blocks.0 has a graph of its own, %inner"),
        (be_in_a_graph, "a block is called in a graph inside of the graph"),
    ],
)
def test_expand_repeats_rejects_what_is_not_certain_and_changes_nothing(change, message):
    gm = fork(marked(Row(2)))
    (linear,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    change(gm, linear)
    before = [str(node) for node in gm.graph.nodes]
    with pytest.raises(CannotExpand) as caught:
        expand_repeats(gm)
    assert str(caught.value) == message
    assert [str(node) for node in gm.graph.nodes] == before
    assert gm.graph.find_nodes(op="call_function", target=MARK)
