"""narrow_linears computes what is read of a product, and nothing else."""

import operator
from functools import partial

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.harness.macs import count_macs
from dqar_fx.passes import narrow_linears
from dqar_fx.passes.support.graphs import has_effect
from dqar_fx.passes.support.runner import fork
from tests.helpers.rewrite_checks import (
    aten,
    captured,
    captured_dit,
    check_metadata,
    check_rewrite,
    check_twice,
    check_values,
    operators,
    printed,
    rewritten,
    tokens,
)

CLOSE = 1e-6
"""The order of sums may depend on the number of columns."""
UNIT, PARTS = 4, 6
LINEAR, SLICE = "aten.linear.default", "aten.slice.Tensor"


class Product(nn.Module):
    """A linear of six parts, and what reads it."""

    def __init__(self, read, bias=True):
        super().__init__()
        self.linear = nn.Linear(8, UNIT * PARTS, bias=bias)
        self.linear.weight.data = tokens(UNIT * PARTS, 8)
        self.read = read

    def forward(self, x):
        return self.read(self.linear(x))


def graph_of(read, x, bias=True):
    """The captured graph, dead code gone as it is where the pass runs."""
    gm = captured(Product(read, bias), x)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def some_of_chunk(*live):
    """Functions of some of six chunks."""

    def read(y):
        parts = y.chunk(PARTS, -1)
        return tuple(parts[k].sin() for k in live)

    return read


def test_narrow_linears_one_run_is_one_product_over_views():
    x = tokens(2, 8)
    gm = graph_of(some_of_chunk(2, 3), x)
    ops = {"aten.chunk.default": -1, SLICE: 4, "<built-in function getitem>": -2}
    out = check_rewrite(gm, narrow_linears, [x], rewrites=1, ops=ops, relative=CLOSE)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 8]"):
    linear_weight: "f32[24, 8]" = self.linear.weight
    linear_bias: "f32[24]" = self.linear.bias
    slice_tensor: "f32[8, 8]" = aten.slice.Tensor(linear_weight, 0, 8, 16)
    slice_tensor_1: "f32[8]" = aten.slice.Tensor(linear_bias, 0, 8, 16)
    linear_default: "f32[2, 8]" = aten.linear.default(x, slice_tensor, slice_tensor_1)
    slice_tensor_2: "f32[2, 4]" = aten.slice.Tensor(linear_default, 1, 0, 4)
    slice_tensor_3: "f32[2, 4]" = aten.slice.Tensor(linear_default, 1, 4, 8)
    sin: "f32[2, 4]" = aten.sin.default(slice_tensor_2)
    sin_1: "f32[2, 4]" = aten.sin.default(slice_tensor_3)
    return (sin, sin_1)""",
    )


def test_narrow_linears_several_runs_are_several_products():
    x = tokens(2, 8)
    gm = graph_of(some_of_chunk(0, 1, 2, 5), x)
    ops = {"aten.chunk.default": -1, SLICE: 7, "<built-in function getitem>": -4, LINEAR: 1}
    out = check_rewrite(gm, narrow_linears, [x], rewrites=1, ops=ops, relative=CLOSE)
    assert sorted(columns_of(out)) == [UNIT, 3 * UNIT]


def columns_of(gm):
    """How many columns each linear has."""
    nodes = gm.graph.find_nodes(op="call_function", target=aten.linear.default)
    return [node.meta["val"].shape[-1] for node in nodes]


def heads(y):
    return y.unflatten(-1, (3, 2, UNIT))


READERS = {
    "split": lambda y: y.split(5, -1)[4].sin(),
    "split_with_sizes": lambda y: y.split([7, 1, 16], -1)[1].sin(),
    "slice": lambda y: (y[..., 3:9].sin(), y[..., 7:10].cos()),
    "slice_of_the_end": lambda y: y[..., -5:].sin(),
    "select": lambda y: y[..., 3].sin(),
    "unbind": lambda y: y.unbind(-1)[7].sin(),
    "unflatten_unbind": lambda y: heads(y).unbind(-3)[0].sin(),
    "unflatten_select": lambda y: heads(y).select(-3, 2).sin(),
    "unflatten_slice": lambda y: heads(y)[..., 1:, :, :].sin(),
    "unflatten_chunk": lambda y: heads(y).chunk(3, -3)[1].sin(),
    "permute_unbind": lambda y: heads(y).permute(2, 0, 3, 1, 4).unbind(0)[1].sin(),
    "permute_slice": lambda y: heads(y).permute(0, 3, 2, 1, 4)[:, :, :2].sin(),
    "several_readers": lambda y: (y.chunk(6, -1)[0].sin(), y.split(8, -1)[1].cos()),
    "overlap": lambda y: (y.chunk(2, -1)[0].sin(), y.chunk(3, -1)[1].cos()),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("name", READERS)
def test_narrow_linears_reader_rewritten(name, bias):
    x = tokens(2, 3, 8)
    gm = graph_of(READERS[name], x, bias)
    out = check_rewrite(gm, narrow_linears, [x], rewrites=1, relative=CLOSE)
    assert sum(columns_of(out)) < UNIT * PARTS
    check_metadata(out, [x])
    check_twice(gm, narrow_linears)


@pytest.mark.parametrize(
    "read",
    [
        lambda y: y.sin(),
        lambda y: (y.chunk(6, -1)[0].sin(), y.cos()),
        some_of_chunk(*range(PARTS)),
        lambda y: y.chunk(2, 1)[0].sin(),
        lambda y: y[..., ::2].sin(),
        lambda y: y[..., :0].sin(),
        lambda y: y[:1].sin(),
        lambda y: (y.chunk(3, -1)[0].sin(), y.chunk(3, -1)[2].cos(), y.chunk(3, -1)[1].exp()),
        lambda y: heads(y)[..., 0].sin(),
        lambda y: heads(y).permute(2, 0, 3, 1, 4)[:, 1].sin(),
        lambda y: y.reshape(3, 2, -1)[..., :4].sin(),
        lambda y: y + y.chunk(6, -1)[0].repeat(1, 1, 6),
    ],
    ids=[
        *(
            "whole",
            "part_and_whole",
            "all_parts",
            "other_dimension",
            "every_second",
            "nothing",
        ),
        *(
            "other_rows",
            "all_by_several",
            "inside_of_heads",
            "permuted_other",
            "merged",
            "sum",
        ),
    ],
)
def test_narrow_linears_other_readers_left_alone(read):
    x = tokens(2, 3, 8)
    check_rewrite(graph_of(read, x), narrow_linears, [x], rewrites=0, ops={})


class Matrices(nn.Module):
    """The spellings of a product with its weight on the right."""

    def __init__(self, spelling):
        super().__init__()
        self.weight = nn.Parameter(tokens(12, 8))
        self.bias = nn.Parameter(tokens(12))
        self.table = nn.Parameter(tokens(2, 12))
        self.spelling = spelling

    def forward(self, x):
        return self.spelling(self, x).chunk(3, -1)[1].sin()


@pytest.mark.parametrize(
    ("spelling", "rewrites"),
    [
        (lambda m, x: torch.mm(x, m.weight.t()), 1),
        (lambda m, x: torch.addmm(m.bias, x, m.weight.t()), 1),
        (lambda m, x: torch.addmm(m.bias, x, m.weight.t(), beta=2), 0),
        (lambda m, x: torch.addmm(m.table, x, m.weight.t()), 0),
        (lambda m, x: x.matmul(m.weight.t()) + m.bias, 0),
    ],
    ids=["mm", "addmm", "addmm_scaled", "addmm_table", "added_bias"],
)
def test_narrow_linears_other_spellings(spelling, rewrites):
    x = tokens(2, 8)
    gm = captured(Matrices(spelling), x)
    check_rewrite(gm, narrow_linears, [x], rewrites=rewrites, relative=CLOSE)


def test_narrow_linears_several_users_all_read_the_narrow_one():
    x = tokens(2, 8)
    gm = graph_of(lambda y: (y.chunk(3, -1)[1].sin(), y.chunk(3, -1)[1].cos()), x)
    out = check_rewrite(gm, narrow_linears, [x], rewrites=1, relative=CLOSE)
    assert columns_of(out) == [8]


def test_narrow_linears_shared_weight_narrowed_at_each_use():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 16)

        def forward(self, x):
            return self.linear(self.linear(x).chunk(2, -1)[0].sin()).chunk(2, -1)[1]

    gm = captured(Shared(), tokens(2, 8))
    check_rewrite(gm, narrow_linears, [tokens(2, 8)], rewrites=2, relative=CLOSE)


def test_narrow_linears_copies_no_weight():
    x = tokens(2, 8)
    out = rewritten(graph_of(some_of_chunk(1, 4), x), narrow_linears)
    storages = {p.untyped_storage().data_ptr() for p in out.parameters()}

    class Weights(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if target == aten.linear.default:
                assert {a.untyped_storage().data_ptr() for a in args[1:]} <= storages
            return super().call_function(target, args, kwargs)

    Weights(out).run(x)


def test_narrow_linears_nothing_read_left_to_dead_code_elimination():
    gm = captured(Product(lambda y: y.chunk(2, -1)), tokens(2, 8))
    gm.graph.output_node().args = ((),)
    for item in gm.graph.find_nodes(op="call_function", target=operator.getitem):
        gm.graph.erase_node(item)
    assert narrow_linears(gm) == 0


def test_narrow_linears_dit_modulations_of_which_some_is_dead():
    gm, inputs = captured_dit()
    gm = fork(gm)
    chunks = [n for n in gm.graph.nodes if n.target == aten.chunk.default and n.args[1] == 6]
    live = [item for chunk in chunks for item in chunk.users if item.args[1] in (2, 3)]
    gm.graph.output_node().args = (tuple(live),)
    gm.graph.eliminate_dead_code(has_effect)
    gm.recompile()
    out = check_rewrite(gm, narrow_linears, inputs, rewrites=len(chunks), relative=CLOSE)
    assert operators(out)[LINEAR] == operators(gm)[LINEAR]
    saved = count_macs(lambda: gm(*inputs)) - count_macs(lambda: out(*inputs))
    rows, width = chunks[0].meta["val"][0].shape
    assert saved == len(chunks) * rows * width * 4 * width  # four of six parts


# ---- any product -------------------------------------------------------------------------


@st.composite
def products(draw):
    """Leading dimensions, sizes of a split, which of its parts live, bias or not."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=7))
    live = draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))
    lead = draw(st.lists(st.integers(1, 4), max_size=3))
    return lead, sizes, sorted(live), draw(st.booleans())


class Split(nn.Module):
    def __init__(self, sizes, live, bias):
        super().__init__()
        self.linear = nn.Linear(5, sum(sizes), bias=bias).double()
        self.sizes, self.live = sizes, live

    def forward(self, x):
        parts = self.linear(x).split(self.sizes, -1)
        return tuple(parts[k].sin() for k in self.live)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(products())
def test_narrow_linears_any_split(case):
    lead, sizes, live, bias = case
    x = tokens(*lead, 5).double()
    gm = captured(Split(sizes, live, bias), x)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    dead = len(live) < len(sizes)
    out = check_rewrite(gm, narrow_linears, [x], rewrites=int(dead), relative=1e-12)
    assert sum(columns_of(out)) == sum(sizes[k] for k in live)
    check_metadata(out, [x])
    check_twice(gm, narrow_linears)
    rows = x.numel() // 5
    assert count_macs(partial(out, x)) == rows * 5 * sum(sizes[k] for k in live)
    check_values(out(x), gm(x), 1e-12)
