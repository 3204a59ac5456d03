"""Values behind a change of layout: as they were, with layouts that are those of a run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.editing import insert_call
from dqar_fx.passes.support.fake_values import refresh_values
from dqar_fx.passes.support.graphs import tensor_value

aten = torch.ops.aten
SHAPE = (2, 3, 4, 6)
KINDS = ("transpose", "view", "slice", "expand", "mix", "strided")
SDPA = aten.scaled_dot_product_attention.default


def start(stride_order):
    """A graph with one input, whose dimensions are in another order in memory."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = x.permute(stride_order).contiguous().permute([*map(stride_order.index, range(4))])
    graph = fx.Graph()
    node = graph.placeholder("x")
    node.meta["val"] = FakeTensorMode().from_tensor(x)
    return graph, node, x


def choose_call(data, node):
    """An operator on a node, and its further arguments; most give another view."""
    value = tensor_value(node)
    shape = list(value.shape)
    dims = st.integers(0, len(shape) - 1)
    kind = data.draw(st.sampled_from(KINDS))
    if kind == "transpose":
        return aten.transpose.int, (node, data.draw(dims), data.draw(dims))
    if kind == "slice":
        dim = data.draw(dims)
        return aten.slice.Tensor, (node, dim, 0, max(1, shape[dim] - 1))
    if kind == "expand":
        return aten.expand.default, (node, [2, *shape]) if len(shape) < 5 else (node, shape)
    if kind == "strided":
        whole = order_is_whole(value)
        return aten.as_strided.default, (node, [2, 3], [1, 2]) if whole else (node, [1], [1])
    if kind == "mix":
        return (SDPA, (node, node, node)) if len(shape) == 4 else (aten.add.Tensor, (node, 1))
    first = data.draw(st.integers(0, len(shape) - 1))
    merged = [*shape[:first], -1, *shape[first + 2 :]]
    return aten.view.default, (node, merged)


def order_is_whole(value):
    return value.untyped_storage().nbytes() >= 4 * (1 + 2 + 2 * 2)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_chain_of_views_has_the_same_values_behind_a_copy(data):
    graph, node, x = start(data.draw(st.permutations(range(4))))
    nodes = [node]
    for _ in range(data.draw(st.integers(1, 7))):
        target, args = choose_call(data, nodes[-1])
        try:
            target(*fx.map_arg(args, lambda n: n.meta["val"]))
        except (RuntimeError, ValueError):  # no view of these strides
            target = aten.reshape.default
        nodes.append(insert_call(nodes[-1], target, *args))
    graph.output(tuple(nodes[1:]))
    before = fx.GraphModule({}, graph)(x)

    source = data.draw(st.sampled_from(nodes))
    with graph.inserting_after(source):
        copied = insert_call(source, aten.contiguous.default, source)
    kept = {copied, graph.output_node()}
    source.replace_all_uses_with(copied, lambda user: user not in kept)
    try:
        refresh_values(graph, {copied: source.meta["val"]})
    except DqarError:  # as_strided of a part of memory
        assume(False)
    graph.lint()
    after = fx.GraphModule({}, graph)(x)
    for expected, found, made in zip(before, after, nodes[1:], strict=True):
        torch.testing.assert_close(found, expected)
        fake = made.meta["val"]
        assert (found.shape, steps_of(found)) == (fake.shape, steps_of(fake))


def steps_of(value):
    """Strides, but those of dimensions of one entry, which lead nowhere."""
    return [step for size, step in zip(value.shape, value.stride(), strict=True) if size > 1]


def test_strides_beyond_a_view_are_not_copied():
    graph, node, _ = start([0, 1, 2, 3])
    part = insert_call(node, aten.slice.Tensor, node, 0, 0, 1)
    made = insert_call(part, aten.as_strided.default, part, [2, 3], [100, 1])
    graph.output((made,))
    with graph.inserting_after(part):
        copied = insert_call(part, aten.contiguous.default, part)
    part.replace_all_uses_with(copied, lambda user: user is not copied)
    with pytest.raises(DqarError, match="shows a part of its memory"):
        refresh_values(graph, {copied: part.meta["val"]})


def turned(target, *args):
    """A graph of one operator that reads a turned input, behind a copy; and its node."""
    graph, node, x = start([0, 1, 3, 2])
    made = insert_call(node, target, node, *args)
    graph.output((made,))
    expected = fx.GraphModule({}, graph)(x)
    with graph.inserting_after(node):
        copied = insert_call(node, aten.contiguous.default, node)
    node.replace_all_uses_with(copied, lambda user: user is not copied)
    refresh_values(graph, {copied: node.meta["val"]})
    assert torch.equal(fx.GraphModule({}, graph)(x)[0], expected[0])
    return graph


def count(graph, target):
    return len(graph.find_nodes(op="call_function", target=target))


def test_a_view_that_strides_forbid_is_a_reshape():
    graph, node, x = start([0, 1, 2, 3])
    across = insert_call(node, aten.transpose.int, node, 1, 2)
    joined = insert_call(across, aten.reshape.default, across, [2, 12, 6])
    graph.output((joined,))
    joined.target = aten.view.default  # of what was strided so that it was one
    refresh_values(graph, {across: across.meta["val"]})
    assert joined.target is aten.reshape.default
    assert torch.equal(fx.GraphModule({}, graph)(x)[0], x.transpose(1, 2).reshape(2, 12, 6))


def test_a_view_that_strides_allow_stays_a_view():
    graph = turned(aten.view.default, [6, 4, 6])
    assert count(graph, aten.reshape.default) == 0


def test_what_reads_strides_reads_a_copy_of_the_former_layout():
    graph = turned(aten.as_strided.default, [3, 5], [7, 1])
    assert count(graph, aten.contiguous.default) == 2
    assert count(graph, aten.permute.default) == 2


def test_strides_of_a_part_are_refused():
    graph, node, _ = start([0, 1, 2, 3])
    part = insert_call(node, aten.slice.Tensor, node, 1, 1, 3)
    insert_call(part, aten.as_strided.default, part, [3], [2])
    with pytest.raises(DqarError, match="of a view that shows a part of its memory"):
        refresh_values(graph, {part: part.meta["val"]})
