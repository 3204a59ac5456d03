"""The helpers that cut graphs, and the text that tells whether two compute the same."""

import operator

import pytest
import torch
from torch import fx, nn

from dqar_fx.passes.support.editing import (
    copy_meta,
    drop_unused_inputs,
    extract,
    move_to_submodule,
)
from dqar_fx.passes.support.graphs import (
    describe_value,
    graph_inputs,
    is_call_output,
    is_computing,
    is_static_input,
    parameter_path,
    source_line,
    structure_of,
)
from dqar_fx.passes.support.module_paths import module_path, module_stack
from tests.helpers.rewrite_checks import (
    Attention,
    Block,
    Stack,
    captured,
    check_values,
    tokens,
)

LINEAR = torch.ops.aten.linear.default


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def graph_of(function, *inputs):
    return captured(Function(function), *(inputs or (tokens(),)))


def computing(gm):
    return [node for node in gm.graph.nodes if is_computing(node)]


def test_module_stack_leads_from_the_root_to_the_owner():
    gm = captured(Stack(1), tokens())
    linear = gm.graph.find_nodes(op="call_function", target=LINEAR)[0]
    paths = [path for _, path in module_stack(linear)]
    assert paths == ["", "blocks.0", "blocks.0.attn", "blocks.0.attn.to_q"]
    assert module_path(linear) == "blocks.0.attn.to_q"


def test_module_path_of_the_root_is_empty():
    gm = graph_of(lambda x: x.sin())
    assert [module_path(node) for node in gm.graph.nodes] == ["", "", ""]


def test_source_line_names_the_file_of_the_call():
    (sine,) = computing(graph_of(lambda x: x.sin()))
    assert source_line(sine).startswith("test_graphs.py:")


def test_source_line_takes_the_innermost_frame_of_any_platform():
    node = fx.Graph().placeholder("x")
    assert source_line(node) == "unknown source"
    node.meta["stack_trace"] = (
        'File "/a/outer.py", line 1\nFile "C:\\b\\inner.py", line 27, in f'
    )
    assert source_line(node) == "inner.py:27"


def test_parameter_path_of_parameters_only():
    gm = captured(nn.Linear(8, 8), tokens())
    assert [parameter_path(node) for node in gm.graph.nodes] == [
        "weight",
        "bias",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("record", [{"slot": (0, 0, 0)}, {"action": 0}, {"parameter": "w"}])
def test_is_static_input_by_record(record):
    node = fx.Graph().placeholder("x")
    assert not is_static_input(node)
    node.meta.update(record)
    assert is_static_input(node)


def test_graph_inputs_flowing_first_in_order_of_use():
    gm = graph_of(lambda x, y, z: (z.sin() + x, y), tokens(), tokens(), tokens())
    assert [n.name for n in graph_inputs(computing(gm))] == ["inputs_2", "inputs_0"]
    gm = captured(nn.Linear(8, 8), tokens())
    assert [n.name for n in graph_inputs(computing(gm))] == ["input_1", "weight", "bias"]


def test_copy_meta_is_a_record_of_its_own():
    (sine,) = computing(graph_of(lambda x: x.sin()))
    copied = copy_meta(sine)
    copied["mark"] = True
    assert "mark" not in sine.meta


def test_extract_gives_a_graph_without_parameters_and_its_inputs():
    gm = captured(Attention(), tokens())
    nodes = computing(gm)
    inner, inputs = extract(gm, nodes, nodes[-1:])
    assert not list(inner.parameters())
    assert [n.name for n in inputs] == [
        "x",
        *(f"to_{name}_weight" for name in ("q", "k", "v", "out")),
    ]
    weights = [gm.get_parameter(node.target) for node in inputs[1:]]
    check_values(inner(tokens(), *weights), gm(tokens()))


def test_extract_leaves_the_graph_and_its_records_alone():
    gm = captured(Attention(), tokens())
    before, nodes = gm.code, computing(gm)
    inner, _ = extract(gm, nodes, nodes[-1:])
    for node in inner.graph.nodes:
        node.meta["mark"] = True
    gm.recompile()
    assert gm.code == before
    assert not any("mark" in node.meta for node in gm.graph.nodes)


def test_outline_middle_of_a_chain_becomes_a_call():
    gm = graph_of(lambda x: x.sin().cos().exp().neg())
    expected = gm(tokens())
    _, second, third, last = computing(gm)
    call = move_to_submodule(gm, [second, third], [third], "middle", before=last)
    gm.graph.lint()
    gm.recompile()
    assert (call.op, call.target) == ("call_module", "middle")
    (item,) = call.users
    assert is_call_output(item)
    assert not is_computing(item)
    assert call.meta["val"] == (item.meta["val"],)
    check_values(gm(tokens()), expected)


def test_outline_several_outputs_in_order():
    gm = graph_of(lambda x: (x.sin(), x.sin().cos()))
    expected = gm(tokens())
    nodes = computing(gm)
    outputs = [nodes[0], nodes[-1]]
    call = move_to_submodule(gm, nodes, outputs, "all", before=gm.graph.output_node())
    gm.recompile()
    assert [item.args[1] for item in call.users] == [0, 1]
    check_values(gm(tokens()), expected)


def test_is_call_output_parts_of_a_split_are_none():
    parts = [
        node
        for node in graph_of(lambda x: x.chunk(2)).graph.nodes
        if node.target is operator.getitem
    ]
    assert len(parts) == 2
    assert not any(is_call_output(node) for node in parts)
    assert all(is_computing(node) for node in parts)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sin() * 3,
        lambda x: x.cos() * 2,
        lambda x: (x.sin() * 2, x),
        lambda x: x.sin().sin() * 2,
    ],
    ids=["constant", "operator", "output", "length"],
)
def test_structure_of_other_graphs_differs(function):
    assert structure_of(graph_of(function)) != structure_of(graph_of(lambda x: x.sin() * 2))


@pytest.mark.parametrize(
    "x",
    [tokens(2, 8, 3), tokens().double(), tokens(2, 8, 3).transpose(1, 2)],
    ids=["shape", "dtype", "strides"],
)
def test_structure_of_other_inputs_differs(x):
    def same(x):
        return x.sin() * 2

    assert structure_of(graph_of(same, x)) != structure_of(graph_of(same))


def test_structure_of_operand_order_differs():
    left, right = (
        structure_of(graph_of(function, tokens(), tokens()))
        for function in (lambda x, y: x - y, lambda x, y: y - x)
    )
    assert left != right


def test_structure_of_names_do_not_count():
    def first(x):
        return x.sin() + x.cos()

    gm = graph_of(first)
    renamed = graph_of(first)
    for node in renamed.graph.nodes:
        node.name = f"other_{node.name}"
    assert structure_of(gm) == structure_of(renamed)


def test_structure_of_equal_modules_with_other_weights_is_equal():
    def inner(block):
        gm = captured(block, tokens())
        nodes = computing(gm)
        return extract(gm, nodes, nodes[-1:])[0]

    assert structure_of(inner(Block())) == structure_of(inner(Block()))


def test_structure_of_descends_into_calls():
    def called(function):
        gm = graph_of(function)
        nodes = computing(gm)
        move_to_submodule(gm, nodes, nodes[-1:], "inner", before=gm.graph.output_node())
        return structure_of(gm)

    assert called(torch.sin) == called(torch.sin)
    assert called(torch.sin) != called(torch.cos)


def test_describe_value_of_tensors_and_others():
    strided = torch.ones(2, 3).T
    assert describe_value(strided) == "[3, 2] [1, 3] torch.float32 cpu"
    assert describe_value(None) == "NoneType"


def test_drop_unused_inputs_tells_which_stay():
    gm = graph_of(lambda x, y, z: z - x, tokens(), tokens(), tokens())
    assert drop_unused_inputs(gm) == [0, 2]
    gm.recompile()
    check_values(gm(tokens(), 3 * tokens()), [3 * tokens() - tokens()])
    assert drop_unused_inputs(gm) == [0, 1]
