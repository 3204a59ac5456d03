"""fix_sizes puts the sizes of a call into a graph; free_sizes reads them off its inputs."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from dqar_fx.capture.capture import capture
from dqar_fx.capture.symbolic import Unfit
from dqar_fx.passes import fix_sizes, free_sizes, normalise
from dqar_fx.passes.support.runner import fork, run_pass
from dqar_fx.passes.support.sizes import number_at, reads_sizes
from tests.helpers.models import seeded
from tests.helpers.rewrite_checks import operators

aten = torch.ops.aten


class Computing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


FUNCTIONS = {
    "heads": lambda x: x.unflatten(-1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "square": lambda x: x + torch.ones(len(x) ** 2).mean(),
    "rest": lambda x: x[:, : x.shape[1] // 2].sum() + x.shape[1] % 3,
    "root": lambda x: x * (x.shape[0] * x.shape[1]) ** 0.5,
    "positions": lambda x: x + torch.arange(x.shape[1]).reshape(1, -1, 1),
    "joined": lambda x: torch.cat([x, x.new_zeros(len(x), 2, 8)], 1).view(-1, 8),
}


def captured(function, *shape):
    """The capture of a function for all sizes of its input, and the input."""
    x = seeded(*shape)
    found = capture(Computing(function).eval(), (x,), {}, symbolic=True)
    assert found.symbolic is not None
    gm = fork(found.gm)
    run_pass(gm, normalise)
    return found, gm, x


def sizes_of(found, x):
    return found.symbolic.sizes_of([x], found.in_spec)


def fixed_at(found, gm, x):
    """The graph at the sizes of another input, and the number of nodes changed."""
    (node,) = gm.graph.find_nodes(op="placeholder")
    fixed = fork(gm)
    with node.meta["val"].fake_mode as mode:
        value = mode.from_tensor(x)
    changed = fix_sizes(fixed, sizes_of(found, x), [value])
    fixed.graph.lint()
    fixed.recompile()
    return fixed, changed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fix_sizes_gives_what_a_capture_there_computes(name):
    function = FUNCTIONS[name]
    found, gm, x = captured(function, 4, 6, 8)
    assert torch.equal(gm(x)[0], function(x))
    for shape in ((2, 6, 8), (3, 9, 8), (4, 7, 8), (5, 5, 8)):
        other = seeded(*shape)
        fixed, changed = fixed_at(found, gm, other)
        assert changed == sum(map(reads_sizes, gm.graph.nodes))
        assert (changed > 0) == (name != "heads")
        assert not any(map(reads_sizes, fixed.graph.nodes))
        assert torch.equal(fixed(other)[0], function(other))
        (output,) = fixed.graph.output_node().args[0]
        assert output.meta["val"].shape == function(other).shape
        assert operators(fixed) == operators(gm)
        assert torch.equal(gm(x)[0], function(x))  # the graph stays what it is
        assert fixed_at(found, fixed, other)[1] == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_free_sizes_computes_any(name):
    function = FUNCTIONS[name]
    found, gm, _ = captured(function, 4, 6, 8)
    free, free_pass = fork(gm), partial(free_sizes, captured=found.symbolic.captured)
    report = run_pass(free, free_pass, "region")
    assert (report.rewrites > 0) == (name != "heads")
    assert run_pass(free, free_pass, "region").rewrites == 0
    free.recompile()
    for shape in ((4, 6, 8), (2, 9, 8), (3, 7, 8), (1, 5, 8)):
        x = seeded(*shape)
        assert torch.equal(free(x)[0], function(x))


UNTOLD = {
    "positive": (lambda x: torch.ones(len(x)).sum(), 1),
    "negative": (lambda x: torch.arange(-len(x), 3).sum(), 1),
    "a ratio": (lambda x: torch.ones(3) * (1 / len(x)), 1),
    "of either sign": (lambda x: torch.arange(5 - len(x), 9).sum(), 1),
    "two": (lambda x: torch.arange(-len(x), x.shape[1] ** 2).sum(), 2),
}


@pytest.mark.parametrize("name", UNTOLD)
@pytest.mark.parametrize("has_inputs", [True, False])
def test_free_sizes_of_a_size_that_no_input_tells_takes_one_more(name, has_inputs):
    function, number = UNTOLD[name]
    found, gm, _ = captured(function, 4, 6, 8)
    free = fork(gm)
    (node,) = free.graph.find_nodes(op="placeholder")
    del node.meta["sizes"]
    if not has_inputs:
        free.graph.erase_node(node)
    free_pass = partial(free_sizes, captured=found.symbolic.captured)
    assert run_pass(free, free_pass, "region").rewrites > 0
    added = free.graph.find_nodes(op="placeholder")[:number]
    assert all(each.meta["size"] == each.meta["val"].shape[0] for each in added)
    for shape in ((4, 6, 8), (5, 6, 8), (7, 3, 8)):
        x = seeded(*shape)
        sizes = found.symbolic.sizes_of([x], found.in_spec)
        given = [torch.empty(number_at(each.meta["size"], sizes), 0) for each in added]
        assert torch.equal(free(*given, *[x][:has_inputs])[0], function(x))


def test_fix_sizes_of_a_graph_for_one_shape_changes_nothing():
    found = capture(Computing(lambda x: x.unflatten(-1, (2, 4))).eval(), (seeded(2, 8),), {})
    assert found.symbolic is None
    assert fix_sizes(fork(found.gm), {}, []) == 0


def test_what_a_forward_asks_of_sizes_is_refused_elsewhere():
    found, _, _ = captured(lambda x: x.sin() if len(x) == 4 else x.cos(), 4, 6, 8)
    with pytest.raises(Unfit, match="captured for 4 alone"):
        sizes_of(found, seeded(3, 6, 8))
    found, _, _ = captured(lambda x: x.sin() if x.shape[1] % 2 else x.cos(), 4, 6, 8)
    assert set(sizes_of(found, seeded(3, 8, 8)).values()) == {3, 8}
    for shape, said in {
        (3, 7, 8): "the forward asks",
        (1, 6, 8): "a size is 1",
        (3, 6): "number of dimensions",
    }.items():
        with pytest.raises(Unfit, match=said):
            sizes_of(found, seeded(*shape))
    with pytest.raises(Unfit, match="dtype"):
        sizes_of(found, seeded(3, 6, 8).double())


def test_sizes_that_are_one_in_the_capture_are_not_merged():
    def function(x):
        return x + torch.arange(len(x)).sum() - torch.arange(x.shape[1]).sum()

    found, gm, x = captured(function, 4, 4, 8)
    counted = Counter(node.target for node in gm.graph.nodes)
    assert counted[aten.arange.default] == 2
    other = seeded(3, 7, 8)
    assert torch.equal(fixed_at(found, gm, other)[0](other)[0], function(other))
    assert torch.equal(gm(x)[0], function(x))
