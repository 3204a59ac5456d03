"""free_batch frees a graph of its batch size, or says why not; fix_batch puts one in."""

import re
from functools import partial

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dqar_fx.passes import NoMatch, fix_batch, free_batch
from dqar_fx.passes.support.batch_sizes import LinearSize
from dqar_fx.passes.support.graphs import describe_layout, structure_of
from tests.helpers.rewrite_checks import (
    captured,
    check_metadata,
    check_rewrite,
    check_twice,
    printed,
    rewritten,
    tokens,
)

SIZES = (1, 2, 3, 8)


class Call(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def at(function, batch, *shapes):
    """The graph of a function at a batch size, and its inputs."""
    inputs = [tokens(batch, *shape) for shape in shapes or [(6, 4)]]
    return captured(Call(function), *inputs), inputs


def freed(function, batches=(4, 2), *shapes):
    (gm, _), (other, _) = (at(function, batch, *shapes) for batch in batches)
    return rewritten(gm, partial(free_batch, other=other, batches=batches))


def check_sizes(function, batches=(4, 2), *shapes):
    """The freed graph computes at any size, and is the capture of that size once it is in."""
    free = freed(function, batches, *shapes)
    for batch in SIZES:
        gm, inputs = at(function, batch, *shapes)
        fixed = rewritten(free, partial(fix_batch, batch=batch))
        assert structure_of(fixed, describe_layout) == structure_of(gm, describe_layout)
        if batch > 1:  # the stride of a single element is anything
            check_metadata(fixed, inputs)
        for found, expected in zip(free(*inputs), gm(*inputs), strict=True):
            assert torch.equal(found, expected)


def heads(x):
    return x.reshape(len(x), -1, 2, 2).transpose(1, 2)


def test_free_batch_of_a_view_reads_the_size():
    (gm, inputs), (other, _) = at(heads, 4), at(heads, 2)
    free = partial(free_batch, other=other, batches=(4, 2))
    out = check_rewrite(gm, free, inputs, rewrites=1)
    assert_expected_inline(
        re.sub(";  sym_size_int = None", "", printed(out)),
        """\
def forward(self, inputs_0: "f32[4, 6, 4]"):
    sym_size_int = aten.sym_size.int(inputs_0, 0)
    reshape: "f32[4, 6, 2, 2]" = aten.reshape.default(inputs_0, [sym_size_int, -1, 2,
        2])
    transpose: "f32[4, 2, 6, 2]" = aten.transpose.int(reshape, 1, 2)
    return (transpose,)""",
    )


FUNCTIONS = {
    "view": heads,
    "merged heads": lambda x: x.repeat_interleave(3, 0).reshape(3 * len(x), -1).sin(),
    "factory": lambda x: x + torch.ones(len(x), 1, 4),
    "one more": lambda x: torch.cat((x, torch.zeros(2 * len(x) + 1, 6, 4))),
    "expanded": lambda x: torch.arange(4.0).expand(len(x), 6, 4) * x,
    "slices": lambda x: x[: len(x)] + x.sum(0, keepdim=True),
    "copied": lambda x: x.transpose(0, 1).contiguous().cos(),
    "nothing": lambda x: x.sin() @ x.transpose(1, 2),
}


@pytest.mark.parametrize("batches", [(4, 2), (2, 1), (16, 8)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_free_batch_computes_any_size(name, batches):
    check_sizes(FUNCTIONS[name], batches)


def test_free_batch_of_inputs_with_several_rows_per_sample():
    def split(x):
        return x.reshape(len(x) // 3, 3, 4).sin()

    small, large = (captured(Call(split), tokens(3 * batch, 4)) for batch in (2, 4))
    free = rewritten(large, partial(free_batch, other=small, batches=(4, 2)))
    for batch in SIZES:
        x = tokens(3 * batch, 4)
        assert torch.equal(free(x)[0], split(x))


def test_free_batch_of_equal_graphs_changes_nothing():
    gm, inputs = at(torch.sin, 2)
    check_rewrite(gm, partial(free_batch, other=gm, batches=(4, 2)), inputs, rewrites=0)


REFUSED = {
    "another operator": (lambda x: x.sin() if len(x) == 4 else x.cos(), "stands in its place"),
    "more operators": (lambda x: x.sin().cos() if len(x) == 4 else x.sin(), "in its place"),
    "a float": (lambda x: x * (1 / len(x)), "in place of"),
    "half a sample": (lambda x: x[: 1 + (len(x) == 4), : 7 - len(x)] * (3 ** len(x)), ""),
    "another input": (
        lambda x: x.sin() + (x.sin() if len(x) == 4 else x.cos()),
        "place",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_free_batch_refuses_what_is_not_linear_in_the_batch(name):
    function, said = REFUSED[name]
    if name == "half a sample":
        gm, other = (at(lambda x: x.narrow(1, 0, 1 + len(x) // 3), n)[0] for n in (5, 2))
        with pytest.raises(NoMatch, match="not so many per sample"):
            free_batch(gm, other, (5, 2))
        return
    with pytest.raises(NoMatch, match=said):
        freed(function)


def test_free_batch_refuses_a_size_that_no_input_tells():
    (large, small) = (
        captured(Call(lambda x, n=n: x + torch.ones(n, 4).sum()), tokens(6, 4)) for n in (4, 2)
    )
    with pytest.raises(NoMatch, match="no input tells"):
        free_batch(large, small, (4, 2))


def test_free_batch_refuses_another_dtype():
    (gm, _), _ = at(torch.sin, 4), None
    other = captured(Call(torch.sin), tokens(2, 6, 4).double())
    with pytest.raises(NoMatch, match="another kind"):
        free_batch(gm, other, (4, 2))


def test_fix_batch_of_a_square_is_not_the_capture_at_a_third_size():
    def square(x):
        return x.repeat(len(x), 1, 1)

    fixed = rewritten(freed(square), partial(fix_batch, batch=3))
    assert structure_of(fixed) == structure_of(at(square, 3)[0])
    fixed = rewritten(
        freed(lambda x: torch.ones(len(x) ** 2) + x[0, 0, 0]), partial(fix_batch, batch=3)
    )
    assert structure_of(fixed) != structure_of(
        at(lambda x: torch.ones(len(x) ** 2) + x[0, 0, 0], 3)[0]
    )


def test_fix_batch_twice_finds_nothing():
    fixed = rewritten(freed(heads), partial(fix_batch, batch=3))
    check_twice(fixed, partial(fix_batch, batch=3))


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9), st.integers(1, 9))
def test_linear_goes_through_its_points(times, plus, small, more):
    line, batches = LinearSize(times, plus), (small + more, small)
    node = None
    assert LinearSize.through(tuple(map(line.at, batches)), batches, node) == line
